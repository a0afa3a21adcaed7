"""ControlNets against diffusers' `ControlNetModel`, and U-Nets with their residuals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.control import ControlImage
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import build, describe
from jaxdiff.embeddings import Control, Embeddings, Tokens, VectorInputs
from jaxdiff.errors import UserError
from jaxdiff.interop.control_net import control_net, control_net_params
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.control_net import Controlled, ControlNet
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import Level, UNet
from tests.controls import (
    QUICK,
    STEPS,
    TIMES,
    X,
    a_denoiser,
    abstract,
    assert_close,
    control_peer,
    draw,
    fields,
    nchw,
    nhwc,
    numbers,
    params_of,
    read_by,
    reads,
    run,
    shapes,
    tokens,
    unet_peer,
)

KINDS = ("sd1", "sdxl")
IMAGES = {
    name: jnp.asarray(np.abs(draw(2, 64, 96, 3, seed=seed)) % 1)
    for name, seed in (("edges", 5), ("depth", 6))
}
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


def a_control_net(kind, seed=0):
    tensors = numbers(control_peer(kind, seed))
    network = control_net(a_denoiser(kind), tensors)
    return network, control_net_params(network, tensors)


def started(denoiser, given):
    """Parameters at initialisation."""
    drop = denoiser.conditioner.none_dropped(2)

    def init(given):
        key = jax.random.key(0, impl="rbg")  # XLA compiles this generator faster than threefry
        return nn.meta.unbox(denoiser.init(key, X, TIMES, given, drop, train=False))["params"]

    return jax.jit(init, compiler_options=QUICK)(given)


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


def test_the_residuals_are_diffusers():
    down, middle = residuals_of_peers("sd1", "depth", scales={"depth": 1.0})
    network, params = a_control_net("sd1")
    inputs = VectorInputs(jnp.asarray(STEPS, jnp.float32))
    read = Embeddings(tokens=tokens(), vector_inputs=inputs)
    apply = jax.jit(functools.partial(network.apply, train=False), compiler_options=QUICK)
    found = apply({"params": params}, X, read, IMAGES["depth"])
    assert [*found.features] == ["middle"]
    assert_close(found.features["middle"], nhwc(middle))
    assert set(found.skips) == {*network.network.places()} - {"middle"}
    for place, expected in zip(network.network.places(), down, strict=False):
        assert_close(found.skips[place], nhwc(expected))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_unet_with_two_control_nets_is_diffusers(kind):
    torch = pytest.importorskip("torch")
    down, middle = residuals_of_peers(kind, "edges", "depth")
    with torch.no_grad():
        expected = unet_peer(kind)(
            nchw(X),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **read_by(kind),
        ).sample
    denoiser, params = controlled(kind, "edges", "depth")
    found = run(denoiser, params, fields(kind) | IMAGES)
    assert_close(found, nhwc(expected))
    plain = run(a_denoiser(kind), params_of(a_denoiser(kind), kind), fields(kind))
    assert np.abs(found - plain).max() > 0.1 * np.abs(plain).max()


@pytest.mark.slow
def test_control_at_scale_0_and_control_at_its_start_change_no_bit():
    """The convolutions behind a ControlNet start at zero."""
    plain = run(a_denoiser("sd1"), params_of(a_denoiser("sd1"), "sd1"), fields("sd1"))
    denoiser, params = controlled("sd1", "edges", scales={"edges": 0.0})
    given = fields("sd1") | {"edges": IMAGES["edges"]}
    np.testing.assert_array_equal(run(denoiser, params, given), plain)
    own = started(denoiser, given)["network"]["controls_edges"]
    assert {name for name, leaf in own.items() if not any(map(np.any, jax.tree.leaves(leaf)))} == {
        name for name in own if name.startswith("zero_")
    }
    trained = {**params["network"], "controls_edges": own}
    denoiser, _ = controlled("sd1", "edges", scales={"edges": 1.0})
    np.testing.assert_array_equal(run(denoiser, params | {"network": trained}, given), plain)


@pytest.mark.slow
def test_the_unet_keeps_the_paths_of_its_parameters():
    denoiser, params = controlled("sdxl", "edges", "depth")
    plain = a_denoiser("sdxl")
    found = shapes(denoiser, "sdxl", **IMAGES)["network"]
    assert {*found} - {*shapes(plain, "sdxl")["network"]} == {"controls_edges", "controls_depth"}
    assert jax.tree.map(jnp.shape, params["network"]) == jax.tree.map(jnp.shape, found)


@pytest.mark.slow
def test_the_published_size_of_stable_diffusion_1():
    part = SpatialTransformer(heads=8, head_dim=None)
    levels = (*(Level(width, 2, part) for width in (320, 640, 1280)), Level(1280, 2))
    options = BlockOptions(min_group_size=1, modulation="shift")
    unet = UNet(levels, 4, block=options, middle=ResidualMiddle(part), resampling="conv")
    network = ControlNet(unet, NoiseLevel(1280, frequencies=160))
    read = reads(tokens=Tokens(jnp.zeros((2, 7, 768)), jnp.ones((2, 7), bool)))
    make = functools.partial(network.init, train=False)
    found = jax.eval_shape(make, jax.random.key(0), X[:, :, :8], read, IMAGES["edges"][:, :, :64])
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) == 361_279_120


@pytest.mark.slow
def test_a_control_net_of_latents_serves_an_inpainting_model():
    """It reads the noisy latents without the channels that are appended for the U-Net."""
    network, _ = a_control_net("sd1")
    controlled = Controlled(network.network, {"edges": network})
    control = {"edges": Control(IMAGES["edges"], jnp.ones(2))}
    found = abstract(controlled, reads(controls=control, spatial=X))["params"]
    kernels = (found["stem"]["kernel"], found["controls_edges"]["stem"]["kernel"])
    assert [kernel.value.shape[2] for kernel in kernels] == [8, 4]


@pytest.mark.slow
def test_one_description_in_two_places_shares_no_parameters():
    network, _ = a_control_net("sd1")
    both = Controlled(network.network, {"a": network, "b": network})
    found = jax.eval_shape(
        functools.partial(both.init, train=False), jax.random.key(0), X, reads(controls={
            name: Control(IMAGES["edges"], jnp.ones(2)) for name in "ab"
        })
    )["params"]  # fmt: skip
    assert jax.tree.structure(found["controls_a"]) == jax.tree.structure(found["controls_b"])
    assert {"stem", "controls_a", "controls_b"} < {*found}


def test_a_controlled_network_is_a_block_of_a_config():
    denoiser, _ = controlled("sdxl", "edges", "depth")
    assert build(describe(denoiser)) == denoiser


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("edges",), "controls=\\['edges'\\]: expected a control for each of depth, edges"),
        ((), "controls=\\[\\]"),
    ],
)
def test_a_missing_control_is_refused(names, message):
    denoiser, _ = controlled("sd1", "edges", "depth")
    given = {name: Control(IMAGES[name], jnp.ones(2)) for name in names} or None
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        abstract(denoiser.network, reads(controls=given))


def test_misuse_of_control_nets_is_refused():
    network, _ = a_control_net("sd1")
    image = IMAGES["edges"]

    def residuals(image=image, **slots):
        make = functools.partial(network.init, train=False)
        jax.eval_shape(make, jax.random.key(0), X, reads(**slots), image)

    residuals()
    with pytest.raises(UserError, match=r"control image=\(32, 48\): expected \(64, 96\) pixels.*Fix: resize"):
        residuals(image[:, ::2, ::2])
    with pytest.raises(UserError, match="mapping=None: expected one if and only if"):
        residuals(vector_inputs=VectorInputs(jnp.zeros(2), jnp.zeros((2, 3))))
    with pytest.raises(UserError, match="mapping=None: expected one if and only if"):
        residuals(vector_inputs=None)
    with pytest.raises(UserError, match="hint_widths=\\(\\)"):
        network.clone(hint_widths=())
