"""What `jaxdiff.plan` says of Stable Diffusion on several chips: the tables of docs/stable_diffusion.md.

    python docs/scripts/plan_stable_diffusion.py

One image of 50 steps with guidance, and one image of a training step; the U-Net in bfloat16, or float16 where the chip
has no bfloat16. No chip is used, and no file of a model. It takes about a quarter of an hour on a CPU.
"""

import argparse
import pathlib

CONFIG = pathlib.Path(__file__).parent.parent.parent / "configs/stable_diffusion.py"
VARIANTS = {"sd15": "512 x 512", "sd21": "768 x 768", "sdxl": "1024 x 1024"}
CHIPS = {
    "T4": "t4", "L4": "l4", "A100": "a100", "H100": "h100", "TPU v5e": "tpu-v5e", "TPU v6e": "tpu-v6e",
}  # fmt: skip
PURPOSES = {
    "sampling an image": ("sampling_memory_bytes", "sampling_seconds", "sampling_fits"),
    "training, per image": ("memory_bytes", "step_seconds", "fits"),
}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--utilisation", type=float, default=0.4)
    utilisation = flags.parse_args().utilisation

    import jax

    jax.config.update("jax_platforms", "cpu")
    plans = {variant: [plan(variant, chip, utilisation) for chip in CHIPS.values()] for variant in VARIANTS}
    for purpose, fields in PURPOSES.items():
        print(f"| {purpose} | memory | {' | '.join(CHIPS)} |\n|---|{'---|' * (1 + len(CHIPS))}")
        for variant, size in VARIANTS.items():
            print(f"| {variant}, {size} | {' | '.join(row(plans[variant], *fields))} |")
        print()


def plan(variant: str, chip: str, utilisation: float) -> dict:
    """The estimate for one device and a batch of one image."""
    from jaxdiff import config as configs
    from jaxdiff.cost.chips import CHIPS as known
    from jaxdiff.cost.estimate import estimate

    config = configs.load(f"{CONFIG}:{variant}")
    config.batch_size = 1
    config.task.denoiser.network.dtype = "bfloat16" if "bfloat16" in known[chip].flops else "float16"
    return estimate(configs.build(config), chip, 1, utilisation)


def row(plans: list[dict], memory: str, seconds: str, fits: str) -> list[str]:
    """The largest memory, and the time on each chip."""
    most = f"{max(each[memory] for each in plans) / 1e9:.3g} GB"
    return [most, *(duration(each[seconds]) if each[fits] else "does not fit" for each in plans)]


def duration(seconds: float) -> str:
    """Two digits."""
    number, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    return f"{float(f'{number:.2g}'):g} {unit}"


if __name__ == "__main__":
    main()
