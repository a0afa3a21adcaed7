"""What `jaxdiff.plan` says of memory, beside what XLA allocates: the table of docs/plan.md.

    pip install libtpu && python docs/scripts/plan_memory.py --topology v5e:2x2

compiles training steps for a TPU that need not be there; without --topology, for the CPU. One line for each case:
bytes of the state, then bytes beside it, planned and compiled.
"""

import argparse
import os

import numpy as np

NETWORK = "task.denoiser.network"
LEVEL = "jaxdiff.models.unet:Level"
SMALL = (
    f"{NETWORK}.levels={LEVEL}(width=32,blocks=1),{LEVEL}(width=64,blocks=1,attention=jaxdiff.models.pixel_attention:PixelAttention),"
    f"{LEVEL}(width=64,blocks=1)",
    f"{NETWORK}.out_channels=3",
    "task.image_shape=(32,32,3)",
    "batch_size=32",
)
WIDE = (f"{NETWORK}.levels={LEVEL}(width=256,blocks=1)", "batch_size=32")
LARGE = (f"{NETWORK}.levels={LEVEL}(width=128,blocks=1)", *SMALL[1:3], "batch_size=16")
REMAT, HALF = f"{NETWORK}.remat=true", f"{NETWORK}.dtype=bfloat16"
CASES = {
    "width 32 to 64, 32 x 32 pixels, batch 32": SMALL,
    "the same, remat": (*SMALL, REMAT),
    "the same, bfloat16": (*SMALL, HALF),
    "the same, bfloat16 and remat": (*SMALL, HALF, REMAT),
    "width 256, 8 x 8 pixels, batch 32": WIDE,
    "the same, fsdp=4": (*WIDE, "mesh.fsdp=4"),
    "width 128, 32 x 32 pixels, batch 16": LARGE,
    "the same, tensor=4": (*LARGE, "mesh.tensor=4"),
}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--topology", help="a TPU, such as v5e:2x2")
    flags.add_argument("--config", default="configs/digits.py")
    topology, config = (vars(flags.parse_args())[name] for name in ("topology", "config"))
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    if topology:
        from jax.experimental import topologies

        devices = topologies.get_topology_desc(topology, platform="tpu").devices
    else:
        devices = jax.devices()
    for name, overrides in CASES.items():
        state, planned, compiled = compare(config, overrides, devices, "tpu-v5e" if topology else "cpu")
        print(f"| {name} | {state / 1e6:.1f} | {planned / 1e6:.1f} | {compiled / 1e6:.1f} |", flush=True)


def compare(file, overrides, devices, chip) -> tuple[int, int, int]:
    """Bytes of the state; bytes beside it that are planned; bytes that XLA allocates for it."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, Mesh

    from jaxdiff import config as configs
    from jaxdiff.config.overrides import override
    from jaxdiff.cost.estimate import estimate, mesh_of
    from jaxdiff.training.state import abstract_state
    from jaxdiff.training.step import Frozen, jit_train_step, make_train_step

    config = configs.load(file)
    for text in overrides:
        override(config, *text.split("=", 1))
    experiment = configs.build(config)
    kept = estimate(experiment, chip)["memory"]
    state = sum(kept[name] for name in ("parameters", "ema", "optimizer"))
    planned = kept["gradients"] + max(kept["activations"] + kept["gathered"], kept["update"])

    shape = mesh_of(experiment.mesh)
    some = np.array(devices[: shape.size]).reshape(shape.axis_sizes)
    mesh = Mesh(some, shape.axis_names, axis_types=(AxisType.Auto,) * some.ndim)
    task, optimizer = experiment.task, experiment.optimizer.make(experiment.steps)
    abstract = abstract_state(task, optimizer, mesh, len(experiment.ema.extra_emas()))
    step = make_train_step(task, optimizer, experiment.ema, experiment.seed, experiment.accumulation)
    size, images = experiment.batch_size, task.image_shape
    fields = jax.eval_shape(lambda: task.denoiser.conditioner.example(size, images))
    batch = {**fields, "image": jax.ShapeDtypeStruct((size, *images), jnp.float32)}
    program = jit_train_step(step, abstract, mesh).lower(abstract, batch, Frozen()).compile()
    return state, planned, program.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()
