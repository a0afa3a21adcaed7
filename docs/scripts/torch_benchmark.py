"""Ours and diffusers' U-Net side by side on this machine: a denoiser call and a training step.

    python docs/scripts/torch_benchmark.py                      # prints a table for docs/performance.md
    python docs/scripts/torch_benchmark.py --sizes 8 --rounds 5 --no-compile
    python docs/scripts/torch_benchmark.py --convolutions       # where the time goes: the 3 x 3 convolutions alone

Both have the same parameters and are first seen to give the same images. Their runs take turns, so that both see the
same machine; a figure is the median of its rounds. A step is forward, backward and Adam's update in float32.
"""

import argparse
import collections
import functools
import os
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from diffusers import UNet2DModel
from flax import linen as nn

from jaxdiff.interop import diffusers as layout
from jaxdiff.interop.mapping import to_params

SIZES = {
    8: (128, {"in_channels": 1, "out_channels": 1, "block_out_channels": (64, 128), "layers_per_block": 1,
              "attention": (False, True)}),
    32: (16, {"block_out_channels": (64, 128, 128), "layers_per_block": 2, "attention": (False, True, False)}),
    64: (4, {"block_out_channels": (64, 128, 192, 256), "layers_per_block": 2,
             "attention": (False, False, True, True)}),
}  # fmt: skip
"""Image size: batch, and the network."""


def peer(size: int) -> tuple[int, UNet2DModel]:
    batch, given = SIZES[size]
    given = dict(given)
    attention = given.pop("attention")
    down = ["AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in attention]
    up = ["AttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in reversed(attention)]
    model = UNet2DModel(
        sample_size=size, down_block_types=down, up_block_types=up, downsample_type="resnet", upsample_type="resnet",
        resnet_time_scale_shift="scale_shift", attn_norm_num_groups=32, attention_head_dim=32, **given,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        gain = "norm" in name and name.endswith("weight")
        drawn = torch.randn(value.shape, generator=generator)
        value.data = 1 + 0.1 * drawn if gain else 0.05 * drawn
    return batch, model


def ours(model: UNet2DModel, size: int):
    """The denoiser and its parameters."""
    denoiser = layout.denoiser(model.config)
    shape = (1, size, size, model.config.in_channels)
    arguments = jnp.zeros(shape), jnp.full((1,), 0.5), {}, {}
    boxed = jax.eval_shape(functools.partial(denoiser.init, train=False), jax.random.key(0), *arguments)
    tensors = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    abstract = nn.meta.unbox(boxed)["params"]
    return denoiser, jax.tree.map(jnp.asarray, to_params(layout.entries(denoiser.network), tensors, abstract))


def jax_work(denoiser, params, x, steps) -> dict:
    """Denoiser call and training step, compiled; each returns when it is done."""
    t, target = (jnp.asarray(steps, jnp.float32) + 1) / 1000, jnp.asarray(x)
    optimizer = optax.adam(1e-4)

    @jax.jit
    def call(params, x):
        return denoiser.apply({"params": params}, x, t, {}, {}, train=False)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        def loss(params):
            return jnp.mean(
                jnp.square(denoiser.apply({"params": params}, target, t, {}, {}, train=True) - target)
            )

        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    held = {"state": (jax.tree.map(jnp.copy, params), jax.jit(optimizer.init)(params))}

    def train():
        held["state"] = step(*held["state"])
        jax.block_until_ready(held["state"])

    return {"call": lambda: np.asarray(call(params, target)), "step": train}


def torch_work(model, x, steps, compiled: bool) -> dict:
    given, steps = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(steps)
    model = torch.compile(model, dynamic=False) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def call():
        with torch.no_grad():
            return model(given, steps, return_dict=False)[0].numpy().transpose(0, 2, 3, 1)

    def train():
        optimizer.zero_grad(set_to_none=True)
        torch.mean((model(given, steps, return_dict=False)[0] - given) ** 2).backward()
        optimizer.step()

    return {"call": call, "step": train}


def measure(size: int, rounds: int, compiles: bool) -> None:
    batch, model = peer(size)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, size, size, model.config.in_channels)).astype(np.float32)
    steps = rng.integers(0, 1000, batch)
    work = {"ours": jax_work(*ours(model, size), x, steps), "torch eager": torch_work(model, x, steps, False)}
    error = np.abs(work["ours"]["call"]() - work["torch eager"]["call"]()).max()
    assert error < 1e-3, f"the networks differ by {error}"
    if compiles:
        work["torch.compile"] = torch_work(peer(size)[1], x, steps, True)
    millions = sum(value.numel() for value in model.parameters()) / 1e6
    for what in ("call", "step"):
        for one in work.values():
            for _ in range(2):
                one[what]()
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(rounds):
            for name, one in work.items():
                start = time.perf_counter()
                one[what]()
                seconds[name].append(time.perf_counter() - start)
        median = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
        figures = " | ".join(f"{median[name]:.0f}" if name in median else "-" for name in
                             ("ours", "torch eager", "torch.compile"))  # fmt: skip
        ratio = median["ours"] / median["torch eager"]
        kind = "denoiser call" if what == "call" else "training step"
        print(
            f"| {size}x{size}, {millions:.1f} M, batch {batch} | {kind} | {figures} | {ratio:.2f} |",
            flush=True,
        )


def convolutions(size: int, rounds: int) -> None:
    """The 3 x 3 convolutions of a network one by one: forward, and the gradients of input and kernel."""
    batch, model = peer(size)
    seen: collections.Counter = collections.Counter()

    def look(module, given, output):
        seen[(given[0].shape[1], output.shape[1], output.shape[2])] += 1

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_hook(look)
    with torch.no_grad():
        model(torch.zeros(batch, model.config.in_channels, size, size), 0)
    totals = {
        (library, what): 0.0 for library in ("ours", "torch") for what in ("forward", "input", "kernel")
    }
    for (inputs, outputs, side), count in seen.items():
        work = {("ours", what): run for what, run in jax_convolution(batch, side, inputs, outputs).items()}
        work |= {
            ("torch", what): run for what, run in torch_convolution(batch, side, inputs, outputs).items()
        }
        for run in work.values():
            run()
        best = dict.fromkeys(work, float("inf"))
        for _ in range(rounds):
            for key, run in work.items():
                start = time.perf_counter()
                run()
                best[key] = min(best[key], time.perf_counter() - start)
        for key, seconds in best.items():
            totals[key] += 1000 * count * seconds
    figures = " | ".join(f"{totals['ours', what]:.0f} / {totals['torch', what]:.0f}" for what in
                         ("forward", "input", "kernel"))  # fmt: skip
    print(f"| {size}x{size}, batch {batch} | {figures} |", flush=True)


def jax_convolution(batch: int, side: int, inputs: int, outputs: int) -> dict:
    rng = np.random.default_rng(0)
    x, kernel, back = (jnp.asarray(rng.normal(size=shape).astype(np.float32)) for shape in (
        (batch, side, side, inputs), (3, 3, inputs, outputs), (batch, side, side, outputs)))  # fmt: skip

    def forward(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    functions = {
        "forward": jax.jit(lambda x, kernel, back: forward(x, kernel)),
        "input": jax.jit(lambda x, kernel, back: jax.vjp(lambda x: forward(x, kernel), x)[1](back)),
        "kernel": jax.jit(lambda x, kernel, back: jax.vjp(lambda k: forward(x, k), kernel)[1](back)),
    }
    return {
        name: functools.partial(lambda f: jax.block_until_ready(f(x, kernel, back)), f)
        for name, f in functions.items()
    }


def torch_convolution(batch: int, side: int, inputs: int, outputs: int) -> dict:
    x, kernel = torch.randn(batch, inputs, side, side), torch.randn(outputs, inputs, 3, 3)
    back = torch.randn(batch, outputs, side, side)

    def gradient(which: tuple[bool, bool, bool]):
        return torch.ops.aten.convolution_backward(
            back, x, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, which
        )

    return {
        "forward": lambda: torch.nn.functional.conv2d(x, kernel, padding=1),
        "input": lambda: gradient((True, False, False)),
        "kernel": lambda: gradient((False, True, False)),
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    flags.add_argument("--rounds", type=int, default=15)
    flags.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    flags.add_argument("--convolutions", action="store_true", help="time the 3 x 3 convolutions one by one")
    given = flags.parse_args()
    if given.convolutions:
        print(
            "| network | forward, ours / torch, ms | gradient of input | gradient of kernel |\n|---|---|---|---|"
        )
        for size in given.sizes:
            convolutions(size, given.rounds)
        return
    print(
        "| network | work | ours, ms | torch eager, ms | torch.compile, ms | ours / eager |\n|---|---|---|---|---|---|"
    )
    for size in given.sizes:
        measure(size, given.rounds, not given.no_compile)


if __name__ == "__main__":
    main()
