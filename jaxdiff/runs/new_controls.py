"""ControlNets that a run adds to the model of another run: they start as copies of its U-Net (Zhang et al. 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from jaxdiff.models.control_net import OWN, Controlled, origin
from jaxdiff.trees import paths
from jaxdiff.typing import Array, Float, Params

COORDINATES = "coordinates"
"""The name of the channels with positions in `jaxdiff.runs.init_from.layout`."""


def added_controls(before: nn.Module, after: nn.Module) -> list[str]:
    """Names of the ControlNets that the network `after` has and the network `before` lacks."""
    old, new = (network.controls if isinstance(network, Controlled) else {} for network in (before, after))
    return [name for name in new if name not in old]


def own_modules(names: Sequence[str]) -> list[str]:
    """Paths of modules in these ControlNets that the U-Net lacks; these start as in a new run."""
    return [f"network/controls_{name}/{module}" for name in names for module in OWN]


def copies(old: Params, new: Params, names: Sequence[str], layout: Mapping[str, int]) -> Params:
    """The parameters of new ControlNets that copy parameters of the other run's denoiser.

    Args:
      old: parameters of the other run.
      new: initial parameters of the run; only paths are read.
      names: of the new ControlNets.
      layout: input channels of the other run's network, see `jaxdiff.runs.init_from.layout`.
    """
    before, found = paths(old), {}
    for path in paths(new):
        for prefix in (f"network/controls_{name}/" for name in names):
            own = path.removeprefix(prefix)
            if own != path and origin(own) in before:
                value = before[origin(own)]
                found[path] = _without_conditions(value, layout) if own == "stem/kernel" else value
    return unflatten_dict(found, sep="/")


def _without_conditions(kernel: Float[Array, "h w inputs width"], layout: Mapping[str, int]) -> Any:
    """The stem's weights for the image and the coordinates; a ControlNet reads no condition that is an image."""
    kept = [name in ("image", COORDINATES) for name, count in layout.items() for _ in range(count)]
    positions = np.flatnonzero(np.resize(kept, kernel.shape[2]))  # repeated for each pixel of a patch
    return kernel[:, :, positions]
