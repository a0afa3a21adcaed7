"""Estimate the cost of a config before running it: parameters, multiply-adds, memory and time.

python -m jaxdiff.plan --config configs/digits.py
python -m jaxdiff.plan --config configs/digits.py --chip tpu-v4 --devices 32 --config.mesh.fsdp=8 --json
python -m jaxdiff.plan --config configs/adm.py:imagenet64 --devices 1024 --mtbf published \
  --save-seconds 2 --write-seconds 60 --restore-seconds 30 --start-seconds 300
python -m jaxdiff.plan --config configs/digits.py --compile v5e:2x2
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxdiff.cli import app as command
from jaxdiff.cli import compiling
from jaxdiff.cli.figures import aligned, duration, si
from jaxdiff.cost.chips import CHIPS, chip_of
from jaxdiff.errors import expect

PUBLISHED, CHIP = "published", "h200"

DESCRIPTION = "Estimate the cost of a config before running it: parameters, multiply-adds, memory and time."
EPILOG = """\
Everything follows from shapes: no accelerator is used, no data are read, and nothing is compiled without --compile.
docs/plan.md describes which figures are exact and which are estimates. --config.PATH=VALUE changes any field of the
config."""


MEASURED = {
    "save": "how long a save stops the loop",
    "write": "how long it is then written in the background",
    "restore": "to read and verify a checkpoint",
    "start": "from a failure to the first step, without the restore",
    "step": "of one step (default: the estimate)",
}
"""Flags --NAME-seconds of what was measured."""


def parser() -> command.Parser:
    flags = command.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--config", help="a config file, configs/x.py or configs/x.py:variant")
    flags.add_argument("--chip", help=f"one of {', '.join(CHIPS)} (default: {CHIP})")
    flags.add_argument(
        "--devices",
        type=int,
        default=None,
        help="number of devices (default: the fewest that the mesh allows)",
    )
    of_peak = "fraction of the chip's peak rate that is reached (default: %(default)s)"
    flags.add_argument("--utilisation", type=command.number, default=0.4, metavar="FRACTION", help=of_peak)
    goodput = flags.add_argument_group("goodput", "what failures cost, and how often to save; docs/plan.md")
    goodput.add_argument(
        "--mtbf",
        type=_mtbf,
        metavar="HOURS|published",
        help="mean time between failures of the whole run, or that of published runs with as many devices",
    )
    for name, text in MEASURED.items():
        goodput.add_argument(f"--{name}-seconds", type=command.number, metavar="SECONDS", help=text)
    goodput.add_argument(
        "--seed", type=int, default=0, help="of the simulated failures (default: %(default)s)"
    )
    compiling.add(flags)
    flags.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    chip_of(flags.chip or CHIP)  # before the slow imports
    _check_measured(flags)
    compiling.check(flags)
    if flags.compile is not None:
        compiling.run(flags, overrides)
        return
    config = command.load_config(flags.config, overrides)

    import jax

    jax.config.update("jax_platforms", "cpu")  # leave this machine's accelerators to other processes

    from jaxdiff import config as configs
    from jaxdiff.cost.estimate import estimate

    experiment = configs.build(config)
    plan = estimate(experiment, flags.chip or CHIP, flags.devices, flags.utilisation)
    if flags.mtbf is not None:
        plan["goodput"] = _goodput(flags, plan, experiment.checkpoint_every)
    print(json.dumps(plan, indent=1, allow_nan=False) if flags.json else table(plan))


def _mtbf(text: str) -> float | str:
    return text if text == PUBLISHED else command.number(text)


_mtbf.__name__ = "hours"  # as errors name it


def _check_measured(flags: argparse.Namespace) -> None:
    """Raise a `UserError` unless all that the goodput depends on is there, or none of it."""
    given = [name for name in MEASURED if getattr(flags, f"{name}_seconds") is not None]
    if flags.mtbf is None:
        flag = f"--{given[0]}-seconds" if given else ""
        fix = f"add --mtbf {PUBLISHED}, or the hours between failures"
        expect(not given, "--mtbf", None, f"a value, since {flag} is there", fix)
        return
    positive = flags.mtbf == PUBLISHED or flags.mtbf > 0
    expect(positive, "--mtbf", flags.mtbf, f"hours > 0, or {PUBLISHED}", f"use {PUBLISHED}")
    expect(flags.seed >= 0, "--seed", flags.seed, "a number >= 0", "give 0 or more")
    for name in given:
        found, least = getattr(flags, f"{name}_seconds"), "> 0" if name in ("save", "step") else ">= 0"
        fits = found > 0 if least == "> 0" else found >= 0
        expect(fits, f"--{name}-seconds", found, f"seconds {least}", "give the measured time")
    for name in MEASURED:
        present = name == "step" or name in given
        expect(
            present, f"--{name}-seconds", None, "a time, since --mtbf is there", f"measure {MEASURED[name]}"
        )


def _goodput(flags: argparse.Namespace, plan: Mapping[str, Any], checkpoint_every: int) -> dict[str, Any]:
    """The field `goodput` of a plan."""
    from jaxdiff.cost import goodput

    step = flags.step_seconds or plan["step_seconds"]
    times = goodput.Times(
        step, flags.save_seconds, flags.write_seconds, flags.restore_seconds, flags.start_seconds
    )
    published = flags.mtbf == PUBLISHED
    mtbf = goodput.published_mtbf(plan["devices"]) if published else flags.mtbf * goodput.HOUR
    return goodput.report(times, mtbf, checkpoint_every, plan["steps"], flags.seed)


def table(plan: Mapping[str, Any]) -> str:
    """A plan as an aligned table for a terminal."""
    return "\n".join([aligned(_rows(plan)), *(f"Fix: {fix}" for fix in plan["fix"])])


def _rows(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "parameters", si(plan["parameters"]), f"{plan['parameters']:,}, {si(plan['parameter_bytes'])}B"
    for name, number in plan["parts"].items():
        yield f"  {name}", si(number), ""
    frozen = plan["frozen_parameters"]
    if frozen:
        yield "frozen parameters", si(sum(frozen.values())), "not trained"
    for name, number in frozen.items():
        yield f"  {name}", si(number), f"{number:,}"
    yield "multiply-adds per image", "", "one is 2 FLOP"
    forward, training, drawing = plan["multiply_adds"], plan["training_multiply_adds"], plan["sampling"]
    fractions = {name: number / max(forward, 1) for name, number in plan["multiply_adds_by_type"].items()}
    yield "  forward", si(forward), ", ".join(f"{part:.0%} {name}" for name, part in fractions.items())
    yield "  training", si(training), f"{training / max(forward, 1):.2f} x forward"
    note = f"{drawing['calls']} calls, {drawing['evaluations']:.3g} x forward each"
    if drawing["whole_calls"] < drawing["calls"]:
        note += f"; {drawing['whole_calls']} calls are whole, the others reuse features"
    if drawing["guiding_model_evaluations"]:
        note += f", and {drawing['guiding_model_evaluations']:.3g} of a guiding model, not counted"
    yield "  sampling", si(plan["sampling_multiply_adds"]), note
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    yield "memory per device", f"{si(plan['memory_bytes'])}B", f"mesh {mesh}"
    for name, number in plan["memory"].items():
        yield f"  {name}", f"{si(number)}B", ""
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    yield f"  of {plan['chip']}", f"{si(plan['chip_memory_bytes'])}B", verdict
    yield (
        "  fits on",
        "",
        ", ".join(name for name in plan["fits_on"] if name != "cpu") or "none of the known chips",
    )
    steps = f"{plan['steps']} steps of {duration(plan['step_seconds'])}"
    yield "time", duration(3600 * plan["hours"]), steps
    on = f"{plan['devices']} x {plan['chip']} at {plan['utilisation']:.0%} of peak"
    yield "  device-hours", f"{plan['device_hours']:.3g}", on
    yield "  one sample", duration(plan["sampling_seconds"]), "on one device, in a large batch"
    fits = "fits" if plan["sampling_fits"] else "DOES NOT FIT"
    yield "memory of one sample", f"{si(plan['sampling_memory_bytes'])}B", f"on one device, {fits}"
    if "goodput" in plan:
        yield from _rows_of_goodput(plan["goodput"])


def _rows_of_goodput(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "failures", "", f"one in {duration(3600 * found['mtbf_hours'])}, {found['failures']} simulated"
    for row in found["intervals"]:
        spent = ", ".join(f"{row[name]:.2%} {name}" for name in ("lost", "saving", "restarting"))
        note = f"closed form {row['expected']:.2%}; {spent}"
        yield f"  checkpoint_every {row['checkpoint_every']}", f"{row['goodput']:.2%}", note
    yield (
        "  recommended",
        str(found["checkpoint_every"]),
        f"Young and Daly: {found['young_daly_steps']:.4g} steps",
    )
    yield "  time", duration(3600 * found["hours"]), f"with failures, at a goodput of {found['goodput']:.2%}"


if __name__ == "__main__":
    command.run(main)
