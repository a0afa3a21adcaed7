"""Training on a page: curves of the logged numbers, and sample grids."""

from collections.abc import Callable, Iterable, Sequence

from jaxdiff.evaluation.held_out import NAME as HELD_OUT
from jaxdiff.reporting.charts import Series, chart
from jaxdiff.reporting.html import Html, details, element, image, joined
from jaxdiff.reporting.run_files import RunFiles, png, sample_grids

LOSS, THROUGHPUT, EVALUATION = "loss", "images_per_second", "evaluation/"
MOST_GRIDS = 6
"""Sample grids of a run on the page: the last ones at equal distances."""


def curves(runs: Sequence[RunFiles]) -> Html:
    """Charts of loss, held-out loss by band, throughput, evaluations during training, and all other numbers."""
    names = list(dict.fromkeys(name for run in runs for row in run.rows for name in row if name != "step"))
    others = [
        name
        for name in names
        if name not in (LOSS, THROUGHPUT) and not name.startswith((HELD_OUT, EVALUATION))
    ]
    shown = [_compared(runs, name) for name in (LOSS, THROUGHPUT) if name in names]
    shown += _held_out(runs, names)
    shown += _evaluations(runs, [name for name in names if name.startswith(EVALUATION)])
    more = [_compared(runs, name) for name in others]
    return joined([
        _charts(shown) if shown else element("p", "No run has logged anything yet."),
        *_without(runs),
        *([details(f"{len(more)} further logged numbers", _charts(more))] if more else []),
    ])  # fmt: skip


def grids(run: RunFiles) -> Html:
    """The sample grids of a run with captions; a sentence where there are none."""
    found = sample_grids(run)
    if not found:
        return element("p", f"{run.name} has no sample grids.")
    chosen = spread(found, MOST_GRIDS)
    left = f"{len(chosen)} of {len(found)} sample grids are shown. " if len(chosen) < len(found) else ""
    pictures = (_grid(run, int(path.stem), png(path)) for path in chosen)
    return joined([element("p", f"{left}{_conditions(run)}"), element("div", *pictures, class_="grids")])


def spread(items: Sequence, most: int) -> list:
    """At most `most` items at equal distances; the last one is among them."""
    count = min(most, len(items))
    return [items[(i + 1) * len(items) // count - 1] for i in range(count)]


def _without(runs: Sequence[RunFiles]) -> Iterable[Html]:
    """What each run has not logged, in a sentence."""
    for run in runs:
        logged = {name for row in run.rows for name in row}
        if HELD_OUT not in logged:
            text = f"{run.name} logged no held-out loss: it has held_out_loss=None, or too few steps."
            yield element("p", text)
        if not any(name.startswith(EVALUATION) for name in logged):
            yield element("p", f"{run.name} logged no evaluation during training.")


def _charts(found: Iterable[str]) -> Html:
    return element("div", *found, class_="charts")


def _compared(runs: Sequence[RunFiles], name: str) -> Html:
    """One number of all runs."""
    series = [_series(run, name, run.name, colour) for colour, run in enumerate(runs)]
    return chart(name.replace("_", " "), ("step", ""), [each for each in series if each.points])


def _series(run: RunFiles, name: str, title: str, colour: int) -> Series:
    points = [(float(row["step"]), row[name]) for row in run.rows if name in row]
    return Series(title, points, colour=colour)


def _held_out(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Html]:
    """The mean held-out loss of all runs, and the bands of each run."""
    if HELD_OUT not in names:
        return []
    bands = [name for name in names if name.startswith(f"{HELD_OUT}/")]
    by_band = _each(runs, bands, "held-out loss by band of time", lambda name: f"time {name}")
    return [_compared(runs, HELD_OUT), *by_band]


def _each(
    runs: Sequence[RunFiles], names: Sequence[str], title: str, label: Callable[[str], str]
) -> list[Html]:
    """For each run that logged them, a chart of several numbers."""
    found = []
    for run in runs:
        logged = [name for name in names if any(name in row for row in run.rows)]
        series = [_series(run, name, label(name.rpartition("/")[2]), i) for i, name in enumerate(logged)]
        if series:
            found.append(chart(f"{title}, {run.name}", ("step", ""), series))
    return found


def _evaluations(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Html]:
    """For each value of evaluations during training, a chart with the columns of all runs."""
    keys = list(dict.fromkeys(name.split("/", 2)[-1] for name in names))
    return [_evaluation(runs, key, [name for name in names if name.split("/", 2)[-1] == key]) for key in keys]


def _evaluation(runs: Sequence[RunFiles], key: str, names: Sequence[str]) -> Html:
    pairs = [(run, name) for run in runs for name in names if any(name in row for row in run.rows)]
    several = len(runs) > 1
    series = [
        _series(run, name, f"{run.name}, {_column(name)}" if several else _column(name), i)
        for i, (run, name) in enumerate(pairs)
    ]
    return chart(f"evaluation: {key}", ("step", ""), series)


def _column(name: str) -> str:
    """The column of an evaluation's number, ``evaluation/guidance_1.5/recall``."""
    return name.split("/")[1].replace("_", " ") if name.count("/") > 1 else "value"


def _grid(run: RunFiles, step: int, data: bytes | None) -> Html:
    if data is None:
        return element("p", f"The sample grid of step {step} is damaged and left out.")
    caption = element("figcaption", f"step {step}")
    return element("figure", image(data, f"samples of {run.name} at step {step}"), caption)


def _conditions(run: RunFiles) -> str:
    """How the grids were sampled, in words."""
    recipe = run.config.get("sampling") or {}
    sampler = ((recipe.get("sampler") or {}).get("target") or "").rpartition(":")[2]
    scale = (recipe.get("guidance") or {}).get("scale")
    parts = [
        "Samples with the averaged parameters (EMA)",
        f"sampler {sampler}" if sampler else "",
        f"{recipe.get('steps')} steps" if recipe.get("steps") else "",
        f"guidance {scale:g}" if isinstance(scale, int | float) else "",
    ]
    return f"{', '.join(part for part in parts if part)}. Rows with a class or a text are labelled with it."
