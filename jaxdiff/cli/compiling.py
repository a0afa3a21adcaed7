"""`jaxdiff.plan --compile`: programs of a config compiled for TPUs that need not be there. Imports nothing heavy."""

import argparse
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxdiff.cli import app as command
from jaxdiff.cli import output
from jaxdiff.cli.figures import aligned, duration, si
from jaxdiff.cost import topologies
from jaxdiff.cost.topologies import Topology
from jaxdiff.errors import RunFailure, expect

STEP, SAMPLER = "train_step", "sampler"


def add(flags: command.Parser) -> None:
    """Add the flags of compilation to those of the command."""
    group = flags.add_argument_group("compilation", "for TPUs that need not be there; docs/plan.md")
    kinds = ", ".join(topologies.KINDS)
    group.add_argument(
        "--compile", metavar="KIND:SIDES", help=f"compile the training step: v5e:4x4, v5p:2x2x2, ...; {kinds}"
    )
    group.add_argument("--slices", type=int, metavar="N", help="number of slices of this size (default: 1)")
    group.add_argument(
        "--compile-sampler", type=int, metavar="N", help="also the sampler of a batch of N samples"
    )
    group.add_argument("--quick", action="store_true", help="compile faster, to a program that is slower")
    group.add_argument("--try-fixes", action="store_true", help="compile with the fixes until the step fits")
    group.add_argument("--executable", metavar="FILE", help="write the compiled training step")


def check(flags: argparse.Namespace) -> None:
    """Raise a `UserError` for flags that do not fit each other, and for a topology that does not exist."""
    given = {
        name: getattr(flags, name)
        for name in ("slices", "compile_sampler", "quick", "try_fixes", "executable")
    }
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        expect(
            flags.compile is not None or value in (None, False),
            flag,
            value,
            "no such flag without --compile",
            "add --compile=v5e:4x4",
        )
    if flags.compile is None:
        return
    for name in ("chip", "devices", "mtbf"):
        value, fix = getattr(flags, name), "leave it out"
        expect(value is None, f"--{name}", value, "none, since --compile says what there is", fix)
    topologies.prepare(Topology.parse(flags.compile, 1 if flags.slices is None else flags.slices))
    samples = flags.compile_sampler
    expect(samples is None or samples > 0, "--compile-sampler", samples, "a number >= 1", "give at least 1")


def run(flags: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> None:
    """Compile what the flags ask for, and print what was found.

    Raises:
      RunFailure: a program does not fit into the memory of a chip; what was found is printed before.
    """
    written = None if flags.executable is None else output.file("--executable", flags.executable)
    if written is not None:
        written.check()
    topology = Topology.parse(flags.compile, flags.slices or 1)
    config = command.load_config(flags.config, overrides)

    import jax

    jax.config.update("jax_platforms", "cpu")  # leave this machine's accelerators to other processes

    from jaxdiff.cost import executable

    found, step = _found(flags, topology, config)
    print(json.dumps(found, indent=1, allow_nan=False) if flags.json else table(found))
    short = [name for name in (STEP, SAMPLER) if name in found and not found[name]["fits"]]
    if short:
        raise RunFailure(_too_large(short[0], found[short[0]], found))
    if written is not None and step is not None:
        about = {"config": flags.config, "topology": topology.name, "slices": topology.slices}
        written.write(lambda path: executable.write(step.program, path, about))


def table(found: Mapping[str, Any]) -> str:
    """What was found as an aligned table for a terminal."""
    return "\n".join([aligned(_rows(found)), *(f"Fix: {fix}" for fix in found["fix"])])


def _found(flags: argparse.Namespace, topology: Topology, config: Any) -> tuple[dict[str, Any], Any]:
    """What is known of the programs, and the compiled training step if it fits."""
    from jaxdiff import config as configs
    from jaxdiff.cost import compiled
    from jaxdiff.generation.lowering import lower_sampler

    experiment = configs.build(config)
    plan = _plan(experiment, topology)
    mesh = experiment.mesh.make(topology.devices())
    flops = None if plan is None else 2.0 * plan["training_multiply_adds"] * experiment.batch_size / mesh.size
    found: dict[str, Any] = {
        "topology": topology.name,
        "slices": topology.slices,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "quick": flags.quick,
        "planned_memory_bytes": None if plan is None else plan["memory_bytes"],
        "fix": [],
        "tried": [],
    }
    found[STEP], step = _program(compiled.lower_step(experiment, mesh), topology, flops, flags.quick)
    if step is None and plan is not None:
        found["fix"] = _fixes(experiment, mesh, plan, found[STEP]["memory_bytes"], topology)
    if found["fix"] and flags.try_fixes:
        found["tried"] = list(_tried(found["fix"], config, topology, flags.quick))
    if flags.compile_sampler is not None:
        sampler = lower_sampler(experiment, mesh, flags.compile_sampler)
        rows = sampler.out_info.shape[0]
        flops = None if plan is None else 2.0 * plan["sampling_multiply_adds"] * rows / mesh.size
        found[SAMPLER], _ = _program(sampler, topology, flops, flags.quick)
    return found, step


def _plan(experiment: Any, topology: Topology) -> dict[str, Any] | None:
    """The estimate without compiling; None for a task that makes no samples."""
    from jaxdiff.cost.estimate import estimate
    from jaxdiff.tasks.protocols import Sampleable

    if not isinstance(experiment.task, Sampleable):
        return None
    return estimate(experiment, topologies.KINDS[topology.kind].chip, topology.size)


def _program(
    lowered: Any, topology: Topology, flops: float | None, quick: bool
) -> tuple[dict[str, Any], Any]:
    """The report of a program, and the program; None if it does not fit."""
    from jaxdiff.cost import compiled

    usable = topologies.KINDS[topology.kind].usable
    try:
        program = compiled.compile_lowered(lowered, quick)
    except compiled.TooLarge as error:
        return {
            "fits": False, "memory_bytes": error.needed, "usable_bytes": usable, "reason": str(error)
        }, None  # fmt: skip
    return {"fits": True, **compiled.report(program, topology, flops)}, program


def _fixes(
    experiment: Any, mesh: Any, plan: Mapping[str, Any], needed: int | None, topology: Topology
) -> list[str]:
    """Changes that make room, by the estimate; it is scaled to what the compiler needed."""
    from jaxdiff.cost.fixes import fixes
    from jaxdiff.cost.memory import Memory
    from jaxdiff.distributed.mesh import batch_ways

    usable, planned = topologies.KINDS[topology.kind].usable, plan["memory_bytes"]
    room = min(usable, int(planned * usable / needed) if needed else usable)
    rows = experiment.batch_size // batch_ways(mesh) // experiment.accumulation
    return fixes(experiment, mesh, Memory(**plan["memory"]), min(room, planned - 1), rows)


def _tried(fix: Sequence[str], config: Any, topology: Topology, quick: bool) -> Iterator[dict[str, Any]]:
    """The fixes one on top of the other, each compiled, until the step fits."""
    from jaxdiff import config as configs
    from jaxdiff.config.overrides import override
    from jaxdiff.cost import compiled

    words = [shlex.split(text)[0] for text in fix]
    for word in (word for word in words if word.startswith("--config.")):
        path, _, value = word.removeprefix("--config.").partition("=")
        override(config, path, value)
        experiment = configs.build(config)
        mesh = experiment.mesh.make(topology.devices())
        report, _ = _program(compiled.lower_step(experiment, mesh), topology, None, quick)
        yield {"added": word, "fits": report["fits"], "memory_bytes": report["memory_bytes"]}
        if report["fits"]:
            return


def _too_large(name: str, program: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    usable, needed = program["usable_bytes"], program["memory_bytes"]
    got = f"{si(needed)}B" if needed else program["reason"]
    what = "training step" if name == STEP else "sampler"
    fix = "fewer samples at once" if name == SAMPLER else next(iter(found["fix"]), "use more chips")
    return f"--compile={found['topology']}: expected a {what} of at most {si(usable)}B on a chip, got {got}. Fix: {fix}"


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    mesh = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    slices = f", {found['slices']} slices" if found["slices"] > 1 else ""
    yield "chips", str(found["devices"]), f"{found['topology']}{slices}; mesh {mesh}"
    for name, title in ((STEP, "training step"), (SAMPLER, "sampler")):
        if name in found:
            yield from _rows_of_program(title, found[name])
    planned = found["planned_memory_bytes"]
    if planned is not None:
        yield "planned memory", f"{si(planned)}B", "of the training step, without compiling"
    for each in found["tried"]:
        needed = each["memory_bytes"]
        yield "tried", f"{si(needed)}B" if needed else "?", f"{each['added']}: {_verdict(each)}"


def _verdict(report: Mapping[str, Any]) -> str:
    return "fits" if report["fits"] else "DOES NOT FIT"


def _rows_of_program(title: str, report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    needed = report["memory_bytes"]
    yield title, "", ""
    of = f"{_verdict(report)} into {si(report['usable_bytes'])}B"
    yield "  memory", f"{si(needed)}B" if needed else "?", of
    if not report["fits"]:
        return
    for name, number in report["memory"].items():
        yield f"    {name}", f"{si(number)}B", ""
    own = "no own count" if report["flops"] is None else f"{si(report['flops'])}FLOP by our count"
    yield "  operations", f"{si(report['compiler_flops'])}FLOP", f"by the compiler's count, loops once; {own}"
    yield from _rows_of_time(report)
    yield from _rows_of_bytes(report)
    yield "  compiled in", duration(report["compile_seconds"]), ""


def _rows_of_time(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    share = report["peak_fraction"]
    note = f"{share:.1%} of peak, " if share is not None else ""
    yield "  time", duration(report["seconds"]), f"{note}estimated by the {report['estimated_by']}"
    yield "    roofline", duration(report["roofline_seconds"]), "operations at peak, or bytes of memory"
    if report["cycles"] is not None:
        yield "    cycles", si(report["cycles"]), "of all instructions one after another"


def _rows_of_bytes(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for kind, each in report["collectives"].items():
        hidden = f"{each['overlapped']} of {each['count']} behind computation"
        yield f"  {kind}", f"{si(each['bytes'])}B", hidden
    if not report["collectives"]:
        yield "  collectives", "none", ""
    moved = report["traffic"]
    yield "  read and written", f"{si(moved['accessed'])}B", f"{si(moved['memory'])}B of the chip's memory"
    padding = f"{report['padding_fraction']:.1%} of the latter"
    yield "    padding", f"{si(moved['padding'])}B", padding
    copies = (
        f"{report['relayout_fraction']:.1%}, {moved['relayouts']} copies into other layouts and transposes"
    )
    yield "    relayouts", f"{si(moved['relayout_bytes'])}B", copies
