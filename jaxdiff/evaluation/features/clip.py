"""CLIP as a feature space of images and of texts, whose vectors share one space (Radford et al. 2021)."""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from jaxdiff.data.clip_merges import SIZE, write_clip_tokenizer
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.tokenizer_files import END
from jaxdiff.errors import UserError, expect, one_of, positive
from jaxdiff.evaluation.features.network import Network, check_images
from jaxdiff.evaluation.features.profiles import LARGEST, PROFILES, coloured
from jaxdiff.evaluation.features.weights import check_sha256, checked_hash
from jaxdiff.interop import text_encoders
from jaxdiff.interop.clip_vision import vision_encoder, vision_params
from jaxdiff.interop.tensors import Checkpoint, read_tensors
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.clip_vision import ClipVisionEncoder, clip_normalised, clip_pixels
from jaxdiff.models.dual_encoder import unit
from jaxdiff.typing import Array, Images

PROCESSOR, STRETCHED = "clip", "cmmd-pytorch"
"""Profiles: CLIP's own, which cuts out the centre; and squares resized without a low-pass."""


@dataclasses.dataclass(frozen=True)
class ClipImages:
    """Unit vectors of images by CLIP's image encoder, with a user's file of weights.

    Attributes:
      weights: a file or folder of transformers: a ``CLIPModel``, or a ``CLIPVisionModelWithProjection``. Published
        figures of CMMD are of ViT-L/14 at 336 pixels (Jayasumana et al. 2024).
      profile: "clip", CLIP's processor: the shorter side is resized and the centre cut out; or "cmmd-pytorch", the
        whole image as a square, see `profiles.PROFILES`.
      sha256: the SHA-256 that the file must have, or its first digits.
      batch_size: number of images at once.
    """

    places: ClassVar[tuple[str, ...]] = ("weights",)

    weights: str
    profile: str = PROCESSOR
    sha256: str | None = None
    batch_size: int = 64

    def __post_init__(self):
        one_of(self, "profile", (PROCESSOR, STRETCHED))
        check_sha256(self.sha256)
        positive(self, "batch_size")

    @property
    def name(self) -> str:
        return "CLIP image embeddings"

    @property
    def dim(self) -> int:
        """The length of the vectors."""
        return self._loaded[0].projection

    @property
    def hash(self) -> str:
        """SHA-256 of the file."""
        return self._loaded[1].hash

    def __call__(self, images: UInt8[np.ndarray, "n height width channels"]) -> Float32[np.ndarray, "n dim"]:
        """The vector of each image, which may be grey.

        Raises:
          UserError: the file cannot be read, is another one, or has no image encoder.
        """
        check_images(images)
        return self._loaded[1](images, batch_size=self.batch_size)

    @property
    def _loaded(self) -> tuple[ClipVisionEncoder, Network]:
        return _load_images(self.weights, self.profile, self.sha256)


@dataclasses.dataclass(frozen=True)
class ClipTexts:
    """Unit vectors of texts by CLIP's text encoder, in the space of `ClipImages` of the same file.

    Attributes:
      weights: a file or folder of transformers: a ``CLIPModel``, or a ``CLIPTextModelWithProjection``.
      tokenizer: the model's folder with ``vocab.json`` and ``merges.txt``; None for CLIP's, which ships with jaxdiff.
      sha256: the SHA-256 that the file must have, or its first digits.
      batch_size: number of texts at once.
    """

    places: ClassVar[tuple[str, ...]] = ("weights", "tokenizer")

    weights: str
    tokenizer: str | None = None
    sha256: str | None = None
    batch_size: int = 64

    def __post_init__(self):
        check_sha256(self.sha256)
        positive(self, "batch_size")

    @property
    def name(self) -> str:
        return "CLIP text embeddings"

    @property
    def dim(self) -> int:
        """The length of the vectors."""
        projection = self._loaded[0].projection
        assert projection is not None
        return projection

    @property
    def hash(self) -> str:
        """SHA-256 of the file."""
        return self._loaded[1].hash

    def __call__(self, texts: Shaped[np.ndarray, "n *ids"]) -> Float32[np.ndarray, "n dim"]:
        """The vector of each text.

        Args:
          texts: str or UTF-8 as bytes [n]; or ids as the model's own tokenizer makes them, int [n, length].

        Raises:
          UserError: the file cannot be read, is another one, or has no text encoder with a projection; or the tokenizer
            has another vocabulary.
        """
        encoder, network = self._loaded
        ids = texts if np.issubdtype(texts.dtype, np.integer) else self._ids(texts, encoder)
        return network(np.asarray(ids, np.int32), batch_size=self.batch_size)

    def _ids(self, texts: np.ndarray, encoder: ClipTextEncoder) -> np.ndarray:
        if self.tokenizer is not None:
            return _encoded(self.tokenizer, texts, encoder)
        rows = encoder.vocabulary
        fix = "give tokenizer=FOLDER of this model"
        expect(
            rows == SIZE,
            "tokenizer",
            None,
            f"the tokenizer of a vocabulary of {rows}",
            fix,
            f"CLIP's of {SIZE}",
        )
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place) / "tokenizer"
            openai = encoder.activation == "quick_gelu"
            write_clip_tokenizer(folder, END if openai else "!")
            return _encoded(str(folder), texts, encoder)

    @property
    def _loaded(self) -> tuple[ClipTextEncoder, Network]:
        return _load_texts(self.weights, self.sha256)


def _encoded(folder: str, texts: np.ndarray, encoder: ClipTextEncoder) -> np.ndarray:
    ids = ClipTokenizer(folder, window=encoder.length).encode_batch(list(texts))
    most, rows = int(ids.max(initial=0)), encoder.vocabulary
    fix = "give the tokenizer of this model"
    expect(most < rows, "tokenizer", folder, f"ids below {rows}, as the text encoder has", fix, str(most))
    return ids


def _part(whole: Checkpoint, part: str) -> dict[str, Any] | None:
    """The config of a part of the model in a folder; None for a single file."""
    config = whole.metadata.get("config")
    return config if config is None else config.get(part, config)


@functools.lru_cache(maxsize=2)
def _load_images(weights: str, profile: str, sha256: str | None) -> tuple[ClipVisionEncoder, Network]:
    found = checked_hash(weights, sha256)
    whole = read_tensors(weights)
    encoder = vision_encoder(whole.tensors, _part(whole, "vision_config"))
    prepare = _preparation(profile, encoder.image_size)

    def vectors(params: Any, images: UInt8[Array, "n height width channels"]) -> Array:
        return unit(encoder.apply({"params": params}, prepare(coloured(images))).vector)

    return encoder, Network(vectors, vision_params(encoder, whole.tensors), found)


def _preparation(profile: str, size: int) -> Callable[[Any], Images]:
    if profile == PROCESSOR:
        return lambda images: clip_pixels(images / LARGEST, size)
    return lambda images: clip_normalised(PROFILES[profile].resized(images, size) / LARGEST)


@functools.lru_cache(maxsize=2)
def _load_texts(weights: str, sha256: str | None) -> tuple[ClipTextEncoder, Network]:
    found = checked_hash(weights, sha256)
    whole = read_tensors(weights)
    encoder = text_encoders.clip_encoder(whole.tensors, _part(whole, "text_config")).clone(pooled=True)
    if encoder.projection is None:
        raise UserError(
            f"weights={weights!r}: expected a text encoder with text_projection.weight, got none. Fix: give a "
            "CLIPModel or a CLIPTextModelWithProjection"
        )

    def vectors(params: Any, ids: Array) -> Array:
        return unit(encoder.apply({"params": params}, ids).vector)

    return encoder, Network(vectors, text_encoders.encoder_params(encoder, whole.tensors), found)
