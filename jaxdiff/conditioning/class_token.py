"""Class tokens: the class label as a token that the network attends to (Rombach et al. 2022)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Int

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.label import LabelCondition
from jaxdiff.conditioning.nulls import Null
from jaxdiff.conditioning.vector import rows_of_classes
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import positive
from jaxdiff.models.layers import embedding_init
from jaxdiff.typing import Array, Bool, Float


class ClassToken(LabelCondition):
    """Class label: one learned token for each class, and one for the null, as in latent diffusion on ImageNet.

    The tokens start as N(0, 1). A learned null is a parameter of its own, which no label can select.

    Attributes:
      num_classes: labels are 0 to num_classes - 1.
      width: channels of the token.
      drop_rate: probability of showing the null in training (Ho & Salimans 2022).
      null: the token without a class, see `Null`.
    """

    num_classes: int
    width: int
    drop_rate: float = 0.1
    null: Null = "learned"

    def __post_init__(self):
        positive(self, "num_classes", "width")
        nulls.check(self.null, self.drop_rate)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, values: Int[Array, "batch"] | Float[Array, "batch classes"], drop: Bool[Array, "batch"]
    ) -> Embeddings:
        table: Any = self.param("table", embedding_init(), (self.num_classes, self.width))
        tokens = rows_of_classes(table, values)[:, None]
        tokens = nulls.replace_dropped(self, self.null, tokens, drop, embedding_init())
        return Embeddings(tokens=Tokens(tokens, jnp.ones(tokens.shape[:2], bool)))
