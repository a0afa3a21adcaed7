"""Sample a run with many settings, and compare quality, diversity and cost.

python -m jaxdiff.sweep --workdir runs/digits --guidance 1,1.5,2,3 --steps 4,8,16 --sampler ddim,heun,dpm_solver2m
python -m jaxdiff.sweep --workdir runs/digits --collapse
python -m jaxdiff.sweep --workdir runs/digits --collapse --apply best-quality
python -m jaxdiff.sweep --workdir runs/digits --ema-search 0.02:0.25 --quality frechet
"""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxdiff.cli import app as command
from jaxdiff.cli import checkpoints, output
from jaxdiff.errors import expect
from jaxdiff.sweeps.settings import Axes, Setting

if TYPE_CHECKING:
    from jaxdiff.evaluation.evaluation import Evaluation
    from jaxdiff.experiment import Experiment
    from jaxdiff.sweeps.loading import Request
    from jaxdiff.sweeps.measures import Measure
    from jaxdiff.sweeps.records import Record
    from jaxdiff.sweeps.report import SweepReport
    from jaxdiff.sweeps.running import Sweep

DESCRIPTION = "Sample a run with all combinations of settings, and compare quality, diversity and cost."
EPILOG = """\
Every combination is sampled, scored with the metrics of the run's evaluation, and recorded in OUT/sweep.jsonl when it
ends. The same command continues where it was stopped, and further settings add to what is recorded.
--rule names how guidance acts: a class of jaxdiff.sampling.guidance.rules such as cfg_plus_plus or 'Rescale(phi=0.5)',
cads or 'Cads(noise_scale=0.2)', autoguidance with --guiding-model, or own. Scales that a rule refuses are left out.
--config.PATH=VALUE changes any field of the stored config."""

COLLAPSE = {"guidance": "1,1.25,1.5,2,3", "interval": "none,0.1:1,0.2:2,0.3:3", "rule": "own,cads"}
"""The settings of ``--collapse``, for flags that are not given."""

AXES = {
    "guidance": ("SCALE,...", "guidance scales"),
    "steps": ("STEPS,...", "numbers of sampling steps"),
    "sampler": ("NAME,...", "samplers, as of jaxdiff.sample"),
    "interval": ("LOW:HIGH,...", "noise levels sigma / alpha at which guidance acts; none for all"),
    "rule": ("RULE,...", "how guidance acts, see below"),
    "ema": ("LENGTH,...", "lengths of the average of the weights, of a run with PowerEma"),
    "negative": ("NAME=VALUE", "a condition to guide away from, or none; repeat the flag for several"),
}
"""Flags of the settings, each with its values and its help."""

REPEATED = ("negative",)
"""Flags with one value each, since texts contain commas."""


def parser() -> command.Parser:
    """The flags of the command."""
    flags = command.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--workdir", required=True, help="folder of the training run")
    checkpoints.add_step(flags)
    for name, (metavar, help_text) in AXES.items():
        action = "append" if name in REPEATED else "store"
        text = f"{help_text} (default: the run's)"
        flags.add_argument(f"--{name}", default=None, action=action, metavar=metavar, help=text)
    flags.add_argument(
        "--collapse", action="store_true", help="what guidance costs in diversity, and what helps"
    )
    flags.add_argument(
        "--ema-search",
        default=None,
        metavar="LOW:HIGH",
        help="find the EMA length of best quality between these two",
    )
    flags.add_argument(
        "--ema-evaluations",
        type=int,
        default=8,
        metavar="N",
        help="lengths that --ema-search tries (default: 8)",
    )
    flags.add_argument(
        "--guiding-model", default=None, metavar="FOLDER[:STEP]", help="a weaker model, for autoguidance"
    )
    flags.add_argument(
        "--n", type=int, default=None, help="samples of each setting (default: the evaluation's)"
    )
    flags.add_argument("--seed", type=int, default=None, help="of the samples (default: the evaluation's)")
    flags.add_argument("--out", default=None, help="folder of the results (default: WORKDIR/sweep)")
    flags.add_argument("--no-images", action="store_true", help="keep no samples, only their figures")
    for name, what in (("quality", "quality"), ("diversity", "diversity")):
        flags.add_argument(
            f"--{name}", default=None, metavar="NAME[:lower]", help=f"the value that stands for {what}"
        )
    flags.add_argument(
        "--apply",
        default=None,
        choices=("best-quality", "best-diversity", "fastest"),
        help="write this setting into the run's config, so that sample --sampler finds it",
    )
    flags.add_argument(
        "--packages", default="", help="comma-separated packages that the stored config may use"
    )
    flags.add_no_verify()
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    settings = _settings(flags)
    folder = _folder(flags)
    packages = tuple(name for name in flags.packages.split(",") if name)
    guiding_model = None if flags.guiding_model is None else command.run_and_step(flags.guiding_model)

    _check_run(flags, overrides)
    step = checkpoints.step_of(flags.step, flags.workdir)

    from jaxdiff.distributed import runtime

    runtime.start()

    import jax

    from jaxdiff.sweeps import loading

    fix = "start one, which uses all of its devices"
    expect(jax.process_count() == 1, "processes", jax.process_count(), "one process for a sweep", fix)

    request = loading.Request(flags.workdir, step, tuple(overrides), packages, guiding_model)
    experiment = request.experiment()
    evaluation = loading.evaluation_of(experiment, flags.n, flags.seed)
    experiment.check_data()
    request.candidates(settings, with_weights=False)  # finds what cannot be sampled before weights are read

    from jaxdiff.runs.lock import lock

    with lock(folder):
        _run(flags, request, experiment, evaluation, settings, folder)


def _run(
    flags: argparse.Namespace,
    request: "Request",
    experiment: "Experiment",
    evaluation: "Evaluation",
    settings: Sequence[Setting],
    folder: pathlib.Path,
) -> None:
    """Sample and score the settings, and report on all of the folder."""
    from jaxdiff.evaluate import inputs_of
    from jaxdiff.evaluation.scoring import Scorer
    from jaxdiff.generation.compiled import PROGRAMS
    from jaxdiff.sweeps import loading, measures, running
    from jaxdiff.sweeps.records import Records
    from jaxdiff.sweeps.report import SweepReport

    start, before = time.perf_counter(), PROGRAMS.count
    models = loading.Models(request)
    # A search chooses its lengths one after the other.
    first = [dataclasses.replace(settings[0], ema=None)] if flags.ema_search else settings
    candidates = request.candidates(first, models=models)
    print("".join(f"{line}\n" for line in candidates.left_out), end="")
    inputs = inputs_of(experiment, candidates.plain, noise_losses=False)
    scorer = Scorer.read(evaluation.metrics, inputs, evaluation.samples, evaluation.seed)
    keep_images = not flags.no_images
    sweep = running.Sweep(scorer, Records(folder), request.config().task, candidates.plain, keep_images)
    real = sweep.real()
    quality = measures.measure("--quality", flags.quality, measures.QUALITY, real["values"])
    diversity = measures.measure("--diversity", flags.diversity, measures.DIVERSITY, real["values"])
    fix = "name one such as recall"
    expect(diversity.higher, "--diversity", flags.diversity, "a value that rises with diversity", fix)
    if flags.ema_search is None:
        sweep(candidates.made)
    else:

        def made(setting: Setting) -> "Sequence[Record]":
            return sweep(request.candidates([setting], models=models).made)

        print(_search(flags, request.step, settings[0], quality, made))
    facts = {"programs": PROGRAMS.count - before, "seconds": round(time.perf_counter() - start, 1)}
    _report(flags, sweep, SweepReport(sweep.recorded(), real, quality, diversity), facts)


def _search(
    flags: argparse.Namespace,
    step: int | None,
    setting: Setting,
    quality: "Measure",
    made: "Callable[[Setting], Sequence[Record]]",
) -> str:
    """Search for the EMA length of best quality with one setting; the result in words."""
    from jaxdiff.sweeps import search
    from jaxdiff.sweeps.report import figure_of

    def value(length: float) -> float:
        (record,) = made(dataclasses.replace(setting, ema=length))
        return -figure_of(record, quality).rank

    found = search.golden_section(value, *search.bounds(flags.ema_search), flags.ema_evaluations)
    at = "" if step is None else f" --step {step}"
    run = f"python -m jaxdiff.posthoc_ema --workdir {flags.workdir}{at} --std {found.best:g} --out NEW"
    return f"{found}\nmake a run of it: {run}"


def _report(flags: argparse.Namespace, sweep: "Sweep", report: "SweepReport", facts: dict[str, Any]) -> None:
    """Print and write a report, and the choice of ``--apply`` into the run's config."""
    from jaxdiff.sweeps import presets
    from jaxdiff.sweeps.report import setting_of

    print(f"\n{report}\n{facts['programs']} programs compiled, {facts['seconds']:.0f} s")
    report.write(sweep.records.folder, facts)
    print(f"wrote report.json, pareto.png and collapse.png to {sweep.records.folder}")
    if flags.apply is not None:
        chosen = report.chosen(flags.apply)
        name = presets.apply(chosen, flags.apply, flags.workdir)
        print(f"applied {flags.apply}: {setting_of(chosen)}; sample it with --sampler {name}")


def _settings(flags: argparse.Namespace) -> list[Setting]:
    """All settings; with ``--ema-search`` the one setting at both ends of the interval."""
    axes, text = _axes(flags), flags.ema_search
    found = axes.settings()
    if text is None:
        return found

    from jaxdiff.sweeps import search

    least, n = "a whole number >= 2", flags.ema_evaluations
    expect(n >= 2, "--ema-evaluations", n, least, "give at least 2, such as 8")
    expect(
        axes.ema == (None,), "--ema", flags.ema, "no other lengths than those of the search", "leave it out"
    )
    fix = "give one value of each other flag, and no --collapse"
    expect(len(found) == 1, search.FLAG, text, "one setting beside it", fix, f"{len(found)} settings")
    return [dataclasses.replace(found[0], ema=length) for length in search.bounds(text)]


def _axes(flags: argparse.Namespace) -> Axes:
    """The values of each setting; with ``--collapse`` those of `COLLAPSE` where a flag is not given."""
    given = {name: getattr(flags, name) for name in AXES}
    if flags.collapse:
        given |= {name: text for name, text in COLLAPSE.items() if given[name] is None}
    for name in ("n", "seed"):
        value, least = getattr(flags, name), 1 if name == "n" else 0
        fits = value is None or least <= value < 2**32
        expect(fits, f"--{name}", value, f"a whole number from {least} to 4294967295", "give one")
    return Axes.parse(given)


def _folder(flags: argparse.Namespace) -> pathlib.Path:
    """The folder of the results, which may exist."""
    folder = output.place("--out", flags.out or f"{flags.workdir}/sweep")
    expect(not folder.is_file(), "--out", str(folder), "a folder", "give another name", "a file")
    return folder


def _check_run(flags: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> None:
    """Raise `UserError` without a run, or if a preset in it could not be written or would give other samples."""
    from jaxdiff.runs.stages import read_model_config

    read_model_config(flags.workdir)
    if flags.apply is None:
        return

    from jaxdiff.sweeps import presets

    presets.check_name(flags.apply, flags.workdir)
    presets.check_overrides([path for path, _ in overrides], "--apply", flags.apply)


if __name__ == "__main__":
    command.run(main)
