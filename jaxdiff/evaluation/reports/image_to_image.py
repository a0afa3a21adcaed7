"""Evaluation of image to image: are samples like real images, right for their condition, and is what was known kept?

Three questions, because each alone is easy to satisfy: a model may make good images and ignore what it is given, the
mean of all that is possible is near to the truth, and a copy of the input keeps all.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Integer

from jaxdiff.data.degradations import Degradation
from jaxdiff.errors import require
from jaxdiff.evaluation.baselines import MeanColour, known, levels
from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.metrics import frechet, paired
from jaxdiff.evaluation.metrics.spectrum import radial_power, spectrum_distance
from jaxdiff.evaluation.protocols import EvaluationInputs, Report
from jaxdiff.evaluation.reports import paired as restoration
from jaxdiff.evaluation.reports.paired import number

SHOWN = 6  # examples in the picture, or two of each task if that is more
ALL = "all"


@dataclasses.dataclass(frozen=True)
class TranslationEvaluation:
    """What to measure, and on how many test images, of one task or several.

    The condition is an image with one channel more, float32 between -1 and 1 or bytes: 1 where a pixel is known and
    has to be kept exactly, less where it is to be made. There the image is a hint (grey, edges) or a flat colour.

    Errors are taken over the pixels that are to be made, with the right conditions and with *shuffled* ones: those of
    another test image of the same task, while the truth and the pixels stay. A model that ignores its condition has
    the same error twice.

    The error says little where many images fit, as for sketches. Hints are then made of the samples as well: how far
    they are from those that were given says whether a sample is what was drawn.

    The baseline gives pixels that are to be made the mean colour of the training images; for the tasks of `keep_luma`
    it takes their luma from the hint, and only the chroma is the mean: that is the harder one.

    Args:
      tasks: names of the tasks, in the order of their numbers.
      condition: name of the given image among the model's conditions.
      task_field: name of the number of the task, int [n], in the test examples; None for one task alone.
      keep_luma: names of the tasks whose hint is a grey image of the truth.
      hints: for each task what makes its hint of an image, such as `Edges`, or None where hints are not compared.
      n: number of test images, evenly spread over those of each task; all if they are fewer.
      samples_per_input: samples of one image, of which the first is judged; more than one gives the diversity.
      guidances: guidance scales to sample at, besides the one of the recipe.
      seed: of the samples' noise and of the shuffling; the next ones are those of further samples of one input.
      features: the space of the Fréchet distance.
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
    features: Patches = dataclasses.field(default_factory=Patches)

    def __post_init__(self):
        fits = len(self.tasks) == len(set(self.tasks)) > 0 and ALL not in self.tasks
        require(fits, "tasks", self.tasks, f"these are no names, or {ALL!r} is among them", "name each once")
        fits = self.task_field is not None or len(self.tasks) == 1
        require(fits, "task_field", self.task_field, f"there are {len(self.tasks)} tasks", "name their field")
        fits = set(self.keep_luma) <= set(self.tasks)
        require(fits, "keep_luma", self.keep_luma, f"tasks are {self.tasks}", "choose of these")
        fits = len(self.hints) in (0, len(self.tasks))
        require(fits, "hints", self.hints, f"tasks are {self.tasks}", "give one, or None, for each")
        require(self.n > 1, "n", self.n, "conditions could not be shuffled", "take 100 or more")
        fits = self.samples_per_input > 0
        require(fits, "samples_per_input", self.samples_per_input, "there is nothing to judge", "take 1 or 4")

    def __call__(self, subject: EvaluationInputs) -> Report:
        all_tasks = self._tasks_of(subject)
        rows = restoration.evenly(all_tasks, self.n)
        conditions = restoration.given(subject, self.condition, rows)
        truth, task, source = subject.test["image"][rows], all_tasks[rows], conditions[self.condition]
        fits = source.shape == (*truth.shape[:3], truth.shape[3] + 1)
        require(fits, self.condition, source.shape, f"images are {truth.shape}", "give one channel more")
        whole = [self.tasks[t] for t in np.unique(task) if known(source[task == t]).all()]
        require(not whole, self.condition, whole, "nothing is to be made", "let alpha be -1 where pixels are")
        others = derangement(task, self.seed)
        wrong = {name: values[others] for name, values in conditions.items()}
        samples = restoration.samples(self, subject, conditions, truth.shape, self.samples_per_input)
        shuffled = restoration.samples(self, subject, wrong, truth.shape, 1)
        baseline = self.baseline(subject.train["image"], source, task)
        values = {
            "evaluation": "translation",
            "conditions": {
                "keep_luma": list(self.keep_luma),
                **restoration.stated(self, subject, len(rows)),
            },
            **self.score(samples, shuffled, baseline, source, task, truth),
            "noise_losses": restoration.curves(subject),
        }
        table, caption = self.table(values), self.caption(values)
        of_task = (np.flatnonzero(task == t) for t in np.unique(task))
        count = max(2, SHOWN // len(self.tasks))
        shown = np.concatenate([rows[restoration.evenly(task[rows], count)] for rows in of_task])
        hint = np.clip(np.rint(levels(source[..., :-1])), 0, 255).astype(np.uint8)
        examples = {
            "given": hint[shown],
            "mean colour": baseline[shown],
            **restoration.shown(samples, shown),
            "truth": truth[shown],
        }
        names = [self.tasks[t] for t in task[shown]]
        picture = restoration.drawn(examples, names, table, caption, values["noise_losses"])
        return Report(values, table, caption, picture)

    def baseline(self, train: np.ndarray, source: np.ndarray, task: np.ndarray) -> np.ndarray:
        """What the mean colour of training images makes of each source, as its task says."""
        grey = np.isin(task, [self.tasks.index(name) for name in self.keep_luma])
        flat, tinted = (MeanColour.of(train, keep_luma)(source) for keep_luma in (False, True))
        return np.where(grey[:, None, None, None], tinted, flat)

    def score(
        self,
        samples: Mapping[float, np.ndarray],
        shuffled: Mapping[float, np.ndarray],
        baseline: np.ndarray,
        source: np.ndarray,
        task: np.ndarray,
        truth: np.ndarray,
    ) -> dict[str, Any]:
        """The figures over all test images and for each task.

        Args:
          samples: by guidance, each uint8 [samples_per_input, n, height, width, channels].
          shuffled: by guidance, each uint8 [1, n, height, width, channels]: made of others' conditions.
          baseline: uint8 [n, height, width, channels].
          source: what was given, [n, height, width, channels + 1].
          task: int [n].
          truth: uint8 [n, height, width, channels].
        """
        places = {ALL: np.ones(len(task), bool)}
        places |= {self.tasks[t]: task == t for t in np.unique(task)}
        columns, unknown = {}, ~known(source)
        for name, rows in places.items():
            reference = _Truth(self.features, truth[rows], unknown[rows])
            hint = self._hint(name)
            base = reference.row(baseline[rows])
            of_samples = []
            for guidance, images in samples.items():
                row = reference.row(images[0, rows])
                wrong = paired.rms(shuffled[guidance][0, rows], truth[rows], unknown[rows])
                row |= {
                    f"baseline_over_{key}": restoration.ratio(base[key], row[key])
                    for key in ("frechet", "frechet_made")
                }
                row |= {
                    "shuffled_error": wrong,
                    "shuffled_over_error": wrong / row["error"] if row["error"] > 0 else None,
                    "hint_error": hint and _hint_error(hint, images[0, rows], source[rows]),
                    "shuffled_hint_error": hint
                    and _hint_error(hint, shuffled[guidance][0, rows], source[rows]),
                    "kept": paired.share_kept(images[0, rows], truth[rows], ~unknown[rows]),
                    "diversity": paired.diversity(images[:, rows], unknown[rows]),
                }
                of_samples.append({"guidance": guidance, **row})
            columns[name] = {"n": int(rows.sum()), "baseline": base, "samples": of_samples}
        return {"tasks": columns}

    def table(self, values: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """The figures as rows of words: a column for each task."""
        columns = values["tasks"].values()
        rows = [("", *values["tasks"]), ("test images", *(str(column["n"]) for column in columns))]

        def add(label: str, key: str, sample: int | None, word: Callable[[Any], str] = number) -> None:
            found = (
                column["baseline"] if sample is None else column["samples"][sample] for column in columns
            )
            rows.append((label, *(word(row[key]) for row in found)))

        guidances = [row["guidance"] for row in values["tasks"][ALL]["samples"]]
        for key, label in (
            ("frechet", "Frechet distance"),
            ("frechet_made", "Frechet, made pixels"),
            ("spectrum", "spectrum distance"),
            ("error", "error, levels"),
        ):
            add(f"{label}: mean colour", key, None)
            for i, guidance in enumerate(guidances):
                add(f"{label}: guidance {guidance:g}", key, i)
                if key.startswith("frechet"):
                    add("- mean colour's over this", f"baseline_over_{key}", i)
                if key == "error":
                    add("- shuffled conditions", "shuffled_error", i)
                    add("- shuffled over right", "shuffled_over_error", i)
        for i, guidance in enumerate(guidances):
            if any(self.hints):
                add(f"hint error, levels: guidance {guidance:g}", "hint_error", i)
                add("- shuffled conditions", "shuffled_hint_error", i)
        for i, guidance in enumerate(guidances):
            add(f"known pixels kept: guidance {guidance:g}", "kept", i, _share)
            if self.samples_per_input > 1:
                add(f"diversity, levels: guidance {guidance:g}", "diversity", i)
        return rows

    def caption(self, values: Mapping[str, Any]) -> list[str]:
        """Under which conditions the figures hold."""
        facts = values["conditions"]
        lines = [
            f"{facts['n']} of {facts['test_images']} test images, {facts['features']}, seed {self.seed}",
            "error: RMS to the truth over the pixels that are made; shuffled: with another image's conditions",
            "hint error: RMS between a sample's hint and the one that was given" if any(self.hints) else "",
            "mean colour: of the training images"
            + (f"; chroma alone for {', '.join(self.keep_luma)}" if self.keep_luma else ""),
            restoration.made_with(facts),
        ]
        return [line for line in lines if line]

    def _hint(self, task: str) -> Degradation | None:
        return dict(zip(self.tasks, self.hints, strict=False)).get(task)

    def _tasks_of(self, subject: EvaluationInputs) -> Integer[np.ndarray, "count"]:
        if self.task_field is None:
            return np.zeros(len(subject.test["image"]), int)
        known = self.task_field in subject.test
        require(
            known, "task_field", self.task_field, f"test examples have {sorted(subject.test)}", "name one"
        )
        task = np.asarray(subject.test[self.task_field])
        fits = set(task.tolist()) <= set(range(len(self.tasks)))
        require(fits, "tasks", self.tasks, f"there are tasks {np.unique(task).tolist()}", "name all of them")
        return task


def _hint_error(hint: Degradation, images: np.ndarray, source: np.ndarray) -> float:
    """RMS in levels between the hints of images, each with a generator of its own, and those that were given."""
    made = np.stack([hint(image, np.random.default_rng(i)) for i, image in enumerate(images)])
    given = levels(source[..., :-1])
    return float(np.sqrt(np.mean((np.broadcast_to(levels(made), given.shape) - given) ** 2)))


def _share(value: float | None) -> str:
    """With so many figures that one pixel of millions is seen."""
    return "-" if value is None else f"{value:.9g}"


class _Truth:
    """Real images of one task, and what images made in their place are compared by."""

    def __init__(self, features: Patches, truth: np.ndarray, unknown: np.ndarray):
        self.features, self.truth, self.unknown = features, truth, unknown
        self.all, self.made = features.fit(truth), features.fit(truth, unknown)
        self.power = radial_power(truth)

    def row(self, images: np.ndarray) -> dict[str, Any]:
        made = self.features.fit(images, self.unknown)
        return {
            "frechet": frechet.frechet_distance(self.features.fit(images), self.all),
            "frechet_made": frechet.frechet_distance(made, self.made),
            "spectrum": spectrum_distance(radial_power(images), self.power),
            "error": paired.rms(images, self.truth, self.unknown),
        }


def derangement(groups: Integer[np.ndarray, "n"], seed: int) -> Integer[np.ndarray, "n"]:
    """For each row another one of its group, each used once, at random.

    Raises:
      UserError: a group has one row only.
    """
    generator, others = np.random.default_rng(seed), np.empty(len(groups), int)
    for group in np.unique(groups):
        rows = generator.permutation(np.flatnonzero(groups == group))
        require(len(rows) > 1, "n", len(groups), f"task {group} has one image only", "take more test images")
        others[rows] = np.roll(rows, 1)
    return others
