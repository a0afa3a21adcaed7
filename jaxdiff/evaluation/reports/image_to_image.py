"""Evaluation of image to image: are samples realistic, right for their condition, and are known pixels kept?

Three questions, because each alone is easy to satisfy: a model may generate realistic images and ignore its condition,
the mean of all possible images is close to the truth, and a copy of the input keeps every pixel.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from jaxdiff.data.degradations import Degradation
from jaxdiff.errors import expect
from jaxdiff.evaluation import metric as folds
from jaxdiff.evaluation.baselines import MeanColour, known, levels
from jaxdiff.evaluation.examples import Subset
from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.metric import Batch, Metric, States
from jaxdiff.evaluation.metrics.patch_frechet import PatchFrechet
from jaxdiff.evaluation.metrics.restoration import Diversity, GeneratedError, HintError, KnownKept
from jaxdiff.evaluation.metrics.spectrum import SpectrumDistance
from jaxdiff.evaluation.protocols import EvaluationInputs, Fields, Report
from jaxdiff.evaluation.reports import paired
from jaxdiff.evaluation.reports.image_to_image_tables import ALL, caption, report, table
from jaxdiff.evaluation.settings import curves

SHOWN = 6
"""Number of examples in the figure, or two of each task if that is more."""


@dataclasses.dataclass(frozen=True)
class TranslationEvaluation:
    """Distances of patches and spectra, error, hint error, known pixels and diversity, for one task or several.

    The condition is an image with an alpha channel, float32 in [-1, 1] or uint8. Alpha is 1 where a pixel is known and
    must be kept exactly, and less where it is generated. There the image is a hint (grey, edges) or a flat colour.

    Errors are measured over the generated pixels, once under the right conditions and once under *shuffled* ones: those
    of another test image of the same task, while truth and pixels stay. A model that ignores its condition has the same
    error twice.

    The error says little where many images fit, as for sketches. Then hints are computed from the samples as well, and
    compared with the given hints.

    The baseline fills generated pixels with the mean colour of the training images. For the tasks of `keep_luma` it
    takes their luma from the hint and only the chroma from the mean: a harder baseline.

    Attributes:
      tasks: names of the tasks, in the order of their numbers.
      condition: name of the given image among the model's conditions.
      task_field: name of the number of the task, int [n], in the test examples; None for a single task.
      keep_luma: names of the tasks whose hint is a grey image of the truth.
      hints: for each task the function that computes its hint from an image, such as `Edges`, or None to compare none.
      n: number of test images, evenly spread over those of each task; all if there are fewer.
      samples_per_input: number of samples of each image. The metrics use the first; two or more give the diversity.
      guidances: guidance scales, in addition to the scale of the sampling recipe.
      seed: seed of the samples' noise and of the shuffling; sample i of an input uses ``seed + i``.
      features: patches of the Fréchet distance.
      every: training steps between evaluations; 0 evaluates only when training ends.
    """

    tasks: tuple[str, ...]
    condition: str = "source"
    task_field: str | None = "task"
    keep_luma: tuple[str, ...] = ()
    hints: tuple[Degradation | None, ...] = ()
    n: int = 1000
    samples_per_input: int = 1
    guidances: tuple[float, ...] = ()
    seed: int = 0
    features: Patches = Patches()
    every: int = 0

    def __post_init__(self):
        distinct = len(self.tasks) == len(set(self.tasks)) > 0 and ALL not in self.tasks
        expect(distinct, "tasks", self.tasks, f"distinct names other than {ALL!r}", "name each task once")
        fits = self.task_field is not None or len(self.tasks) == 1
        expected = f"the field of the numbers of {len(self.tasks)} tasks"
        expect(fits, "task_field", self.task_field, expected, "name it")
        fits = set(self.keep_luma) <= set(self.tasks)
        expect(fits, "keep_luma", self.keep_luma, f"names among {self.tasks}", "choose from these")
        fits = len(self.hints) in (0, len(self.tasks))
        expect(
            fits, "hints", self.hints, f"one entry for each of {self.tasks}", "give one, or None, for each"
        )
        paired.check(self)

    def __call__(self, inputs: EvaluationInputs) -> Report:
        paired.check_condition(inputs, self.condition)
        all_tasks = self._tasks_of(inputs)
        rows = paired.evenly(all_tasks, self.n)
        test, task = Subset(inputs.test, rows), all_tasks[rows]
        groups = {ALL: np.ones(len(task), bool)} | {self.tasks[t]: task == t for t in np.unique(task)}
        sources = Subset(test, derangement(task, self.seed))
        reference = {name: self.metrics(name) for name in groups}
        start = self._reference(groups, reference, test, inputs.batch_size)
        count = max(2, SHOWN // len(self.tasks))
        of_task = (np.flatnonzero(task == t) for t in np.unique(task))
        shown = paired.Shown(np.concatenate([of[paired.evenly(task[of], count)] for of in of_task]))

        fill = self._baseline(inputs)
        filled = paired.baseline_batches(test, fill, inputs.batch_size)
        watched = shown.watch("mean colour", self._masked(filled))
        baseline = _values(groups, reference, start, watched)
        samples = []
        for guidance in paired.guidances(self, inputs):
            batches = paired.sample_batches(inputs, test, guidance, self.seed, self.samples_per_input)
            watched = shown.watch(f"guidance {guidance:g}", self._masked(batches))
            shuffled = paired.sample_batches(inputs, test, guidance, self.seed, 1, sources)
            wrong = {name: self.shuffled_metrics(name) for name in groups}
            empty = {name: folds.init(metrics) for name, metrics in wrong.items()}
            found = _values(groups, reference, start, watched)
            under_others = _values(groups, wrong, empty, self._masked(shuffled))
            samples.append((guidance, found, under_others))
        values = {
            "evaluation": "translation",
            "conditions": {
                "keep_luma": list(self.keep_luma),
                **paired.settings(self, inputs, len(test)),
            },
            "tasks": {name: _column(name, int(groups[name].sum()), baseline, samples) for name in groups},
            "noise_losses": curves(inputs),
        }
        fields = test.rows(shown.positions)
        hint = np.clip(np.rint(levels(fields[self.condition][..., :-1])), 0, 255).astype(np.uint8)
        examples = {"given": hint, **shown.columns, "truth": fields["image"]}
        names = [self.tasks[t] for t in task[shown.positions]]
        facts = caption(values["conditions"], self.keep_luma, any(self.hints))
        cells = table(values["tasks"], any(self.hints), self.samples_per_input > 1)
        return report(values, cells, facts, examples, names)

    def metrics(self, task: str) -> tuple[Metric, ...]:
        """The metrics of samples of one task, or of all together."""
        return (
            PatchFrechet(self.features),
            PatchFrechet(self.features, generated=True, key="frechet_generated"),
            SpectrumDistance(),
            GeneratedError(),
            HintError(self.condition, self._hint(task)),
            KnownKept(),
            Diversity(),
        )

    def shuffled_metrics(self, task: str) -> tuple[Metric, ...]:
        """The metrics of samples under the conditions of other images."""
        hint = HintError(self.condition, self._hint(task), "shuffled_hint_error")
        return (GeneratedError("shuffled_error"), hint)

    def _reference(
        self,
        groups: Mapping[str, np.ndarray],
        metrics: Mapping[str, tuple[Metric, ...]],
        test: Subset,
        batch_size: int,
    ) -> dict[str, States]:
        """The states after the test images of each group; checks their masks on the way."""
        states = {name: folds.init(of) for name, of in metrics.items()}
        incomplete = dict.fromkeys(groups, False)
        for batch in self._masked(paired.real_batches(test, "test", batch_size)):
            states = _update(groups, metrics, states, batch)
            for name, rows in groups.items():
                incomplete[name] |= batch.generated is not None and bool(
                    batch.generated[rows[batch.positions]].any()
                )
        full = [name for name, some in incomplete.items() if not some and name != ALL]
        expected, fix = "pixels to generate in each task", "let alpha be -1 where pixels are generated"
        expect(not full, self.condition, full, expected, fix, "none: nothing is to be generated")
        return {name: folds.finish(metrics[name], states[name], "test") for name in groups}

    def _masked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches with the mask of generated pixels, from the alpha channel of the condition."""
        for batch in batches:
            source, images = batch.fields[self.condition], batch.fields["image"]
            expected = f"images {images.shape} with an alpha channel, one channel more"
            fits = source.shape == (*images.shape[:3], images.shape[3] + 1)
            expect(fits, self.condition, source.shape, expected, "give one channel more")
            yield dataclasses.replace(batch, generated=~known(source))

    def _baseline(self, inputs: EvaluationInputs):
        """The function that fills generated pixels with the mean colour of training images, by task."""
        colour = MeanColour.of(fields["image"] for fields in inputs.train.batches(inputs.batch_size))
        tinted = dataclasses.replace(colour, keep_luma=True)
        grey_tasks = [self.tasks.index(name) for name in self.keep_luma]

        def fill(fields: Fields) -> np.ndarray:
            source = fields[self.condition]
            grey = np.isin(self._task(fields), grey_tasks)[:, None, None, None]
            return np.where(grey, tinted(source), colour(source))

        return fill

    def _hint(self, task: str) -> Degradation | None:
        return dict(zip(self.tasks, self.hints, strict=False)).get(task)

    def _tasks_of(self, inputs: EvaluationInputs) -> Integer[np.ndarray, "count"]:
        if self.task_field is None:
            return np.zeros(len(inputs.test), int)
        task = np.concatenate([self._task(fields) for fields in inputs.test.batches(inputs.batch_size)])
        found = np.unique(task).tolist()
        fits = set(found) <= set(range(len(self.tasks)))
        expect(fits, "tasks", self.tasks, f"names of the tasks {found}", "name all of them")
        return task

    def _task(self, fields: Fields) -> Integer[np.ndarray, "n"]:
        if self.task_field is None:
            return np.zeros(len(fields["image"]), int)
        expected = f"one of the fields {sorted(fields)}"
        expect(self.task_field in fields, "task_field", self.task_field, expected, "name one")
        return np.asarray(fields[self.task_field])


Groups = Mapping[str, Bool[np.ndarray, "n"]]
"""The members of each group of test images, by position."""


def _update(
    groups: Groups, metrics: Mapping[str, Sequence[Metric]], states: Mapping[str, States], batch: Batch
) -> dict[str, States]:
    """The states of all groups after one more batch, of which each group sees its members."""
    found = dict(states)
    for name, members in groups.items():
        rows = members[batch.positions]
        if rows.any():
            found[name] = folds.update(metrics[name], states[name], batch.rows(rows))
    return found


def _values(
    groups: Groups,
    metrics: Mapping[str, Sequence[Metric]],
    states: Mapping[str, States],
    batches: Iterable[Batch],
) -> dict[str, dict[str, Any]]:
    for batch in batches:
        states = _update(groups, metrics, states, batch)
    return {name: folds.compute(metrics[name], states[name]) for name in groups}


def _column(
    name: str, n: int, baseline: Mapping[str, dict[str, Any]], samples: Sequence[tuple]
) -> dict[str, Any]:
    """The values of one task: of the baseline, and of the samples at each guidance scale."""
    base, rows = baseline[name], []
    for guidance, found, shuffled in samples:
        values = {**found[name], **shuffled[name]}
        for key in ("frechet", "frechet_generated"):
            values[f"baseline_over_{key}"] = paired.ratio(base[key], values[key])
        values["shuffled_over_error"] = paired.ratio(values["shuffled_error"], values["error"])
        rows.append({"guidance": guidance, **values})
    return {"n": n, "baseline": base, "samples": rows}


def derangement(groups: Integer[np.ndarray, "n"], seed: int) -> Integer[np.ndarray, "n"]:
    """For each row another random row of its group, each used once.

    Raises:
      UserError: a group has a single row.
    """
    generator, others = np.random.default_rng(seed), np.empty(len(groups), int)
    for group in np.unique(groups):
        rows = generator.permutation(np.flatnonzero(groups == group))
        expected = "two images or more of each task"
        expect(len(rows) > 1, "n", len(groups), expected, "use more test images", f"one of task {group}")
        others[rows] = np.roll(rows, 1)
    return others
