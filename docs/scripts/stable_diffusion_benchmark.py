"""Stable Diffusion 1.5 here and in diffusers, side by side on this machine: a call of the U-Net, and a decoded image.

    python docs/scripts/stable_diffusion_benchmark.py     # prints a table for docs/performance.md

Sizes are the published ones, weights are random and the same in both, and both are first seen to give the same values.
The U-Net is called for latents of 64 x 64, batch 1; the autoencoder decodes an image of 256 x 256; all in float32. Runs
take turns, so that both see the same machine; a figure is the median of its rounds.
"""

import argparse
import functools
import os
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn

from jaxdiff.codecs.latent import parameter_shapes
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import runtime
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.interop import autoencoders, schedulers
from jaxdiff.interop.autoencoder_configs import network
from jaxdiff.interop.mapping import to_params
from jaxdiff.interop.stable_diffusion_unet import entries
from jaxdiff.interop.stable_diffusion_unet_config import unet_layout

UNET = {"cross_attention_dim": 768}
VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "sample_size": 512,
}  # fmt: skip


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def tensors_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def unets():
    """A call of each U-Net."""
    model, layout = diffusers.UNet2DConditionModel(**UNET).eval(), unet_layout(UNET)
    x, text, step = draw(1, 64, 64, 4), draw(1, 77, 768), torch.tensor([500])
    tokens = Tokens(jnp.asarray(text), jnp.ones((1, 77), bool))
    noise = layout.noise
    denoiser = Denoiser(
        layout.network, Conditioner(noise), schedulers.process({}), schedulers.parameterization({})
    )
    given = jnp.asarray(x), Embeddings(jnp.zeros((1, noise.width)), tokens)
    shapes = nn.meta.unbox(
        {
            "network": jax.eval_shape(
                functools.partial(layout.network.init, train=False), jax.random.key(0), *given
            )["params"],
            "conditioner": {"noise": jax.eval_shape(noise.init, jax.random.key(0), jnp.zeros(1))["params"]},
        }
    )
    params = jax.tree.map(jnp.asarray, to_params(entries(layout), tensors_of(model), shapes))
    assert denoiser.network == layout.network

    @jax.jit
    def call(params, x):
        vector = noise.apply({"params": params["conditioner"]["noise"]}, jnp.full((1,), 500.0)).vector
        return layout.network.apply({"params": params["network"]}, x, Embeddings(vector, tokens), train=False)

    def peer():
        return model(nchw(x), step, torch.tensor(text)).sample.numpy().transpose(0, 2, 3, 1)

    return (lambda: np.asarray(call(params, given[0]))), peer


def decoders():
    """A decoded image of each autoencoder."""
    model = diffusers.AutoencoderKL(**VAE).eval()
    ours = network(dict(model.config) | {"_class_name": "AutoencoderKL"})
    z = draw(1, 32, 32, 4)
    params = to_params(autoencoders.entries(ours), tensors_of(model), parameter_shapes(ours))
    params = jax.tree.map(jnp.asarray, params)
    decode = jax.jit(lambda params, z: ours.apply({"params": params}, z, method="decode"))

    def peer():
        return model.decode(nchw(z)).sample.numpy().transpose(0, 2, 3, 1)

    return (lambda: np.asarray(decode(params, jnp.asarray(z)))), peer


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rounds", type=int, default=5)
    rounds = flags.parse_args().rounds
    runtime.start()
    print("| work | jaxdiff, s | diffusers eager, s | jaxdiff / diffusers |\n|---|---|---|---|")
    for name, make in (("U-Net, 64x64 latents", unets), ("decoder, 256x256", decoders)):
        with torch.no_grad():
            ours, theirs = make()
            found, expected = ours(), theirs()
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
            times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
        mine, peers = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {mine:.2f} | {peers:.2f} | {mine / peers:.2f} |", flush=True)


if __name__ == "__main__":
    main()
