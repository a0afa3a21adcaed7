"""unCLIP from Python: images of texts, variations of images, interpolations and text diffs (Ramesh et al. 2022)::

unclip = Unclip.load("runs/scenes_unclip")
images = unclip(text=["a blue one"])
images = unclip.variations(photo, 4)
images = unclip.interpolate(photo, other, (0.0, 0.25, 0.5, 0.75, 1.0))
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdiff.errors import expect
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.predictor import Predictor
from jaxdiff.generation.stage_models import first_model
from jaxdiff.generation.stages import Stages
from jaxdiff.runs import weights
from jaxdiff.tasks.contrastive import IMAGE_VECTOR, TEXT_VECTOR

IMAGE, LOW_RES = "image", "low_res"
"""The names of the conditions of decoders and upsamplers."""

GIVES = {"prior": IMAGE, "decoder": LOW_RES}
"""What the samples of the stages are to later ones, by the end of the names of their runs."""

Vectors = Float[np.ndarray, "n dim"]


@dataclasses.dataclass(frozen=True, eq=False)
class Unclip:
    """The stages of unCLIP with the CLIP that they were trained on.

    Attributes:
      clip: images and texts to unit vectors.
      stages: a prior, which gives the condition `IMAGE`; a decoder; and upsamplers, which may have it as well.
    """

    clip: Predictor
    stages: Stages

    @classmethod
    def load(cls, runs: str, **options: Any) -> "Unclip":
        """The runs ``RUNS_clip``, ``RUNS_prior``, ``RUNS_decoder`` and ``RUNS_upsample``.

        Args:
          runs: what their names begin with, such as "runs/scenes_unclip".
          **options: of `Generator.load`, for all but the first.

        Raises:
          UserError: a run is missing, or two were trained with different image encoders.
        """
        folders = {name: f"{runs}_{name}" for name in (*GIVES, "upsample")}
        weights.check_one_encoder({name: (folder, GIVES.get(name)) for name, folder in folders.items()})
        models = {name: Generator.load(folder, **options) for name, folder in folders.items()}
        return cls(Predictor.load(f"{runs}_clip"), Stages(models, GIVES))

    def __call__(self, n: int | None = None, **options: Any) -> np.ndarray:
        """Images of texts, or of image embeddings; see `Stages.run`."""
        return self.stages(n, **options)

    def decode(
        self,
        vectors: Vectors,
        *,
        seed: int = 0,
        guidance: float | None = None,
        same_noise: bool = False,
        **conditions: Any,
    ) -> np.ndarray:
        """Images of embeddings.

        Args:
          vectors: image embeddings.
          seed: image i of a seed is always the same.
          guidance: scale of the stage after the prior, instead of its recipe's.
          same_noise: start all images from one noise, so that they differ by their embeddings alone. Samplers that
            draw noise on the way draw other noise for each.
          **conditions: others than the embedding, such as a text for the decoder. They may be left out.

        Raises:
          UserError: the vectors are no array [n, dim] with n of at least 1.
        """
        rows = np.asarray(vectors, np.float32)
        fix = "give one row for each image, such as vectors[None]"
        expect(rows.ndim == 2 and len(rows) > 0, "vectors", rows.shape, "vectors [n, dim]", fix)
        left = self.stages.sampled({IMAGE})[1]
        scales = None if guidance is None else {left[0]: guidance}
        noise = self._one_noise(left, len(rows), seed) if same_noise else {}
        return self.stages(len(rows), seed=seed, guidance=scales, noise=noise, **{IMAGE: rows, **conditions})

    def _one_noise(self, names: Sequence[str], n: int, seed: int) -> dict[str, np.ndarray]:
        """For each stage, the same noise n times."""
        models = self.stages.models
        shapes = {name: first_model(models[name]).data_shape for name in names}
        drawn = {
            name: np.random.default_rng([seed, number]).standard_normal(shape, np.float32)
            for number, (name, shape) in enumerate(shapes.items())
        }
        return {name: np.broadcast_to(noise, (n, *noise.shape)) for name, noise in drawn.items()}

    def variations(
        self, image: np.ndarray, n: int, *, seed: int = 0, guidance: float | None = None
    ) -> np.ndarray:
        """Images that share what the embedding of `image` tells, and differ in the rest (section 3.1).

        Args:
          image: uint8 [height, width, 3].
        """
        vector = self.image_vectors(np.asarray(image)[None])
        return self.decode(np.repeat(vector, n, axis=0), seed=seed, guidance=guidance)

    def interpolate(
        self, first: np.ndarray, last: np.ndarray, fractions: Sequence[float], *, seed: int = 0,
        guidance: float | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Images between two images: spherical interpolation of their embeddings, one noise for all (section 3.2).

        Args:
          first, last: uint8 [height, width, 3], at the fractions 0 and 1.
        """
        a, b = self.image_vectors(np.stack([first, last]))
        return self.decode(slerp(a, b, fractions), seed=seed, guidance=guidance, same_noise=True)

    def text_diff(
        self, image: np.ndarray, before: str, after: str, fractions: Sequence[float] = (0.0, 0.25, 0.375, 0.5), *,
        seed: int = 0, guidance: float | None = None,
    ) -> np.ndarray:  # fmt: skip
        """An image that turns from what one text says to what another says (section 3.3).

        The embedding is interpolated towards the difference of the texts' embeddings. The paper starts from the
        image's own noise by DDIM inversion (`Generator.invert`); here all start from one drawn noise.

        Args:
          image: uint8 [height, width, 3].
          before, after: texts for the image as it is, and as it shall become.
          fractions: of the way; the paper uses 0.25 to 0.5.
        """
        start = self.image_vectors(np.asarray(image)[None])[0]
        old, new = self.text_vectors([before, after])
        expect(
            not np.allclose(old, new),
            "after",
            after,
            "a text with another embedding than `before`",
            "change one",
        )
        return self.decode(slerp(start, new - old, fractions), seed=seed, guidance=guidance, same_noise=True)

    def image_vectors(self, images: np.ndarray) -> Vectors:
        """Unit vectors of images uint8 [n, height, width, 3].

        Raises:
          UserError: the images are another array.
        """
        task: Any = self.clip.task
        return self.clip({task.image_field: images})[IMAGE_VECTOR]

    def text_vectors(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of texts.

        Raises:
          UserError: a text is given in place of a list.
        """
        expect(not isinstance(texts, str), "texts", texts, "a list of texts", f"give [{texts!r}]")
        task: Any = self.clip.task
        return self.clip({task.text_field: task.tokenizer.encode_batch(texts)})[TEXT_VECTOR]


def slerp(
    first: Float[np.ndarray, "dim"], last: Float[np.ndarray, "dim"], fractions: Sequence[float]
) -> Float[np.ndarray, "n dim"]:
    """Unit vectors on the great circle from `first` to `last`, at fractions of the angle between them.

    Raises:
      UserError: the vectors point in opposite directions, so that there are many such circles; or one is zero; or they
        are no vectors of one length; or the fractions are no list.
    """
    a, b = (np.asarray(vector, np.float64) for vector in (first, last))
    shapes = (a.shape, b.shape)
    expect(a.ndim == 1 and a.shape == b.shape, "vectors", shapes, "two vectors of one length", "give such")
    expect(np.ndim(fractions) == 1, "fractions", fractions, "a list of numbers", "give one, such as [0.5]")
    lengths = [float(np.linalg.norm(vector)) for vector in (a, b)]
    expect(
        min(lengths) > 0, "vectors", lengths, "two vectors that are not zero", "give other images or texts"
    )
    a, b = a / lengths[0], b / lengths[1]
    across = b - (a @ b) * a
    size = float(np.linalg.norm(across))
    expect(size > 1e-6 or bool(a @ b > 0), "vectors", "...", "no opposite vectors", "choose another end")
    angles = np.asarray(fractions, np.float64)[:, None] * np.arctan2(size, a @ b)
    side = across / size if size > 0 else across
    return (np.cos(angles) * a + np.sin(angles) * side).astype(np.float32)
