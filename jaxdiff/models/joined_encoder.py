"""One text through several encoders, whose tokens are concatenated channel by channel, as in SDXL."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Int

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import expect
from jaxdiff.typing import Array


class JoinedEncoder(nn.Module):
    """Joined encoders: each reads its part of the ids of a `JoinedTokenizer` (Podell et al. 2023, "SDXL", section 2.1).

    The features of a token are those of all encoders, and a token is valid where all of them have one. The vector is
    that of the last encoder that gives one. Parameters are named ``encoder_0``, ``encoder_1``, ...

    Attributes:
      encoders: modules from ids to `Embeddings` with tokens, two or more.
    """

    preserve_adopted_names: ClassVar[bool] = True

    encoders: tuple[nn.Module, ...]

    def __post_init__(self):
        expect(len(self.encoders) > 1, "encoders", len(self.encoders), "two or more encoders", "add one")
        self.encoders = tuple(encoder.clone(name=f"encoder_{i}") for i, encoder in enumerate(self.encoders))
        super().__post_init__()

    @property
    def most_skipped(self) -> int:
        """The most blocks that all encoders can skip."""
        return min(most_skipped(encoder) for encoder in self.encoders)

    def __call__(self, ids: Int[Array, "batch ids"], skip: int = 0) -> Embeddings:
        """The joined tokens [batch, ids / encoders, channels], and the vector.

        Args:
          ids: of the texts.
          skip: see `ClipTextEncoder.__call__`; the same for every encoder.

        Raises:
          UserError: the ids do not divide over the encoders, or these give different numbers of tokens.
        """
        count, fix = len(self.encoders), "give the text a JoinedTokenizer with a tokenizer for each encoder"
        expect(ids.shape[1] % count == 0, "ids", ids.shape[1], f"equal parts for {count} encoders", fix)
        parts = jnp.split(ids, count, axis=1)
        skipped = {"skip": skip} if skip else {}
        found = [encoder(part, **skipped) for encoder, part in zip(self.encoders, parts, strict=True)]
        tokens = [each.tokens for each in found]
        lengths = [each.features.shape[1] for each in tokens]
        expect(len(set(lengths)) == 1, "encoders", lengths, "as many tokens of each", "use equal lengths")
        features = jnp.concatenate([each.features for each in tokens], axis=-1)
        mask = functools.reduce(jnp.logical_and, [each.mask for each in tokens])
        vectors = [each.vector for each in found if each.vector is not None]
        return Embeddings(vector=vectors[-1] if vectors else None, tokens=Tokens(features, mask))


def most_skipped(encoder: nn.Module) -> int:
    """The largest `skip` that a text encoder takes: 0 for one without that argument."""
    return getattr(encoder, "most_skipped", 0)
