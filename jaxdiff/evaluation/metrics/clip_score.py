"""CLIP score: agreement of an image with its caption, the cosine of their CLIP embeddings (Hessel et al. 2021)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from jaxdiff.errors import expect, positive
from jaxdiff.evaluation.features.description import describe
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics.bootstrap import interval
from jaxdiff.evaluation.metrics.cmmd import unit
from jaxdiff.evaluation.protocols import FeatureExtractor, TextFeatureExtractor


def clip_scores(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n d"], scale: float = 100.0
) -> Float64[np.ndarray, "n"]:
    """``scale * max(cos, 0)`` of each pair. The paper's scale is 2.5; 100 is that of most published tables."""
    return scale * np.maximum((unit(images) * unit(texts)).sum(axis=1), 0)


@dataclasses.dataclass(frozen=True)
class ClipScore(Metric):
    """Mean CLIP score of the samples and the captions that they were requested with.

    It saturates: strong guidance raises it at the cost of diversity. Values of different CLIP models do not compare.

    Attributes:
      images: image embeddings of a CLIP.
      texts: text embeddings of the same CLIP.
      text: name of the field of texts, or of token ids, that `texts` reads.
      scale: factor of the cosine.
    """

    images: FeatureExtractor
    texts: TextFeatureExtractor
    text: str = "text"
    scale: float = 100.0

    needs_all = True  # one number for each sample

    def __post_init__(self):
        positive(self, "scale")

    @property
    def streams(self) -> tuple[str, ...]:
        return ("samples",)

    def init(self) -> tuple[np.ndarray, ...]:
        return ()

    def update(self, state: tuple[np.ndarray, ...], batch: Batch) -> tuple[np.ndarray, ...]:
        fix, got = "name the field of captions", f"the fields {sorted(batch.fields)}"
        expect(self.text in batch.fields, "text", self.text, "a field of the samples' conditions", fix, got)
        vectors = batch.features(self.images), self.texts(batch.fields[self.text])
        expected, widths = (
            "embeddings of one CLIP",
            f"{vectors[0].shape[1]} and {vectors[1].shape[1]} numbers",
        )
        same = vectors[0].shape == vectors[1].shape
        expect(same, "texts", self.texts.name, expected, "use the text encoder of the same CLIP", widths)
        return (*state, clip_scores(*vectors, self.scale))

    def compute(self, state: tuple[np.ndarray, ...]) -> dict[str, Any]:
        scores = np.concatenate(state)
        return {"clip_score": {"value": float(scores.mean()), "interval": interval(scores), "n": len(scores)}}

    def table(self) -> Sequence[Row]:
        return [Row("CLIP score", "clip_score.value", decimals)]

    def settings(self) -> dict[str, Any]:
        texts = {"text_features": self.texts.name}
        if (hashed := getattr(self.texts, "hash", None)) is not None:
            texts["text_features_hash"] = str(hashed)
        return {**describe(self.images), **texts, "clip_score_scale": self.scale}
