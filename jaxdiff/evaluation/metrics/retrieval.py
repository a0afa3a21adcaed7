"""Retrieval of texts by images and of images by texts: how well the vectors of pairs find each other."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Shaped

from jaxdiff.errors import expect
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row

DIRECTIONS = {"text_of_image": "text of an image", "image_of_text": "image of a text"}


class _State(NamedTuple):
    images: tuple[np.ndarray, ...] = ()
    texts: tuple[np.ndarray, ...] = ()
    ids: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Retrieval(Metric):
    """Recall of retrieval: the fraction of images whose own text is among the nearest ones, and of texts likewise.

    Consecutive test examples form groups of `candidates`; those after the last whole group are left out. A text that
    equals the right one is right as well, and so is an image of such a text. Ties count as errors.

    Attributes:
      candidates: examples of a group, the right one included.
      at: how many of the nearest candidates count as found.
      image_vector, text_vector: the fields with unit vectors [n, width].
      text: the field whose equality makes two texts equal.
    """

    candidates: int = 64
    at: tuple[int, ...] = (1, 5)
    image_vector: str = "image_vector"
    text_vector: str = "text_vector"
    text: str = "text"

    needs_all = True

    def __post_init__(self):
        fix = "use 64"
        expect(self.candidates > 1, "candidates", self.candidates, "at least 2, to choose from", fix)
        fits = bool(self.at) and all(0 < k < self.candidates for k in self.at)
        expect(fits, "at", self.at, f"numbers from 1 to candidates - 1 = {self.candidates - 1}", "use (1, 5)")

    @property
    def streams(self) -> tuple[str, ...]:
        return ("test",)

    def init(self) -> _State:
        return _State()

    def update(self, state: _State, batch: Batch) -> _State:
        images, texts, ids = (batch.fields[name] for name in (self.image_vector, self.text_vector, self.text))
        return _State((*state.images, images), (*state.texts, texts), (*state.ids, ids))

    def compute(self, state: _State) -> dict[str, Any]:
        images, texts, ids = map(np.concatenate, state)
        ranks = self._ranks(images, texts, ids)
        recall = {
            name: {f"at_{k}": float(np.mean(found < k)) for k in self.at} for name, found in ranks.items()
        }
        return {"retrieval": {**recall, "groups": len(images) // self.candidates}}

    def _ranks(
        self,
        images: Float[np.ndarray, "n width"],
        texts: Float[np.ndarray, "n width"],
        ids: Shaped[np.ndarray, "n *text"],
    ) -> dict[str, Integer[np.ndarray, "m"]]:
        """For each direction, how many wrong candidates are as near as the right one or nearer."""
        groups = len(images) // self.candidates
        expect(groups > 0, "candidates", self.candidates, f"at most {len(images)}, the number of test examples",
               "use fewer")  # fmt: skip
        found: dict[str, list[np.ndarray]] = {name: [] for name in DIRECTIONS}
        for first in range(0, groups * self.candidates, self.candidates):
            rows = slice(first, first + self.candidates)
            cosines = images[rows].astype(np.float64) @ texts[rows].astype(np.float64).T
            flat = ids[rows].reshape(self.candidates, -1)
            wrong = np.any(flat[:, None] != flat[None], axis=-1)
            for name, table in zip(DIRECTIONS, (cosines, cosines.T), strict=True):
                right = np.max(np.where(wrong, -np.inf, table), axis=1)
                # Not `>=`: what is not finite counts as nearer, so it is never found.
                found[name].append(np.sum(wrong & ~(table < right[:, None]), axis=1))
        return {name: np.concatenate(ranks) for name, ranks in found.items()}

    def table(self) -> Sequence[Row]:
        return [
            Row(f"{label} among the nearest {k}" if k > 1 else f"{label} is the nearest",
                f"retrieval.{name}.at_{k}", decimals)
            for name, label in DIRECTIONS.items()
            for k in self.at
        ]  # fmt: skip

    def settings(self) -> dict[str, Any]:
        return {"candidates": self.candidates}

    def notes(self, values: Mapping[str, Any]) -> Sequence[str]:
        groups = values["retrieval"]["groups"]
        return [
            f"{groups} groups of {self.candidates} test examples; equal texts count as one; by chance, the nearest "
            f"is right in {decimals(1 / self.candidates)} of all cases, or more often where texts repeat"
        ]
