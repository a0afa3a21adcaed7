"""ControlNets against diffusers' `ControlNetModel`, and U-Nets with their residuals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.control import ControlImage
from jaxdiff.config import build, describe
from jaxdiff.errors import UserError
from jaxdiff.interop.control_net import control_net, control_net_params
from jaxdiff.models.control_net import Controlled, ControlNet
from tests.controls import (
    COMMON,
    X,
    a_denoiser,
    assert_close,
    control_peer,
    draw,
    fields,
    nchw,
    nhwc,
    numbers,
    params_of,
    read_by,
    run,
    shapes,
    unet_peer,
)

KINDS = ("sd1", "sdxl")
IMAGES = {name: np.abs(draw(2, 64, 96, 3, seed=seed)) % 1 for name, seed in (("edges", 5), ("depth", 6))}
SCALES = {"edges": 0.7, "depth": -1.3}


def controlled(kind, *names, scales=SCALES):
    """A model with ControlNets, and its parameters."""
    conditions = {name: ControlImage(3, factor=1 / 8, control=name, scale=scales[name]) for name in names}
    plain, params = a_denoiser(kind), params_of(a_denoiser(kind), kind)
    networks, network_params = {}, dict(params["network"])
    for seed, name in enumerate(names):
        tensors = numbers(control_peer(kind, seed))
        networks[name] = control_net(plain, tensors)
        network_params[f"controls_{name}"] = control_net_params(networks[name], tensors)
    network = Controlled(plain.network, networks)
    return a_denoiser(kind, **conditions).clone(network=network), params | {"network": network_params}


def images(*names):
    return {name: IMAGES[name] for name in names}


def residuals_of_peers(kind, *names, scales=SCALES):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        found = [
            control_peer(kind, seed)(
                nchw(X), controlnet_cond=nchw(IMAGES[name]), conditioning_scale=scales[name],
                return_dict=False, **read_by(kind),
            )
            for seed, name in enumerate(names)
        ]  # fmt: skip
    down = [sum(parts) for parts in zip(*(each[0] for each in found), strict=True)]
    return down, sum(each[1] for each in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("edges",), ("edges", "depth")])
def test_the_controlled_unet_is_diffusers(kind, names):
    torch = pytest.importorskip("torch")
    down, middle = residuals_of_peers(kind, *names)
    with torch.no_grad():
        expected = unet_peer(kind)(
            nchw(X),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **read_by(kind),
        ).sample
    denoiser, params = controlled(kind, *names)
    assert_close(run(denoiser, params, fields(kind) | images(*names)), nhwc(expected))
