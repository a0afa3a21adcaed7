"""Evaluation of super-resolution: are details right in kind, and do samples agree with the small image?

Two questions, because each alone is easy to satisfy: real images of something else have real details, and a blurred
enlargement agrees with the small image.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.data import images as pixels
from jaxdiff.errors import require
from jaxdiff.evaluation.baselines import Enlarged, levels
from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.metrics import frechet, paired
from jaxdiff.evaluation.metrics.spectrum import radial_power, spectrum_distance
from jaxdiff.evaluation.protocols import EvaluationInputs, Report
from jaxdiff.evaluation.reports import paired as restoration
from jaxdiff.evaluation.reports.paired import number

SHOWN = 6  # examples in the picture


@dataclasses.dataclass(frozen=True)
class SuperResolutionEvaluation:
    """What to measure, and on how many test images.

    Columns of the table: "real", the baseline, and the model at each guidance. Fréchet distance and spectrum distance
    are to the truth, which are the test images. For "real" they are from every second test image to the others: what
    two sets of real images differ by. (Crops that overlap make it small. Training images are no yardstick: what they
    show differs, which a model that sees the small image need not.) Its consistency is that of the truth.

    Args:
      factor: how many times larger than the given image the samples are.
      condition: name of the given image among the model's conditions: uint8, or float between -1 and 1.
      n: number of test images, evenly spread over all; all if they are fewer.
      samples_per_input: samples of one image, of which the first is judged; more than one gives the diversity.
      guidances: guidance scales to sample at, besides the one of the recipe.
      seed: of the samples' noise; the next ones are those of further samples of one input.
      features: the space of the Fréchet distance.
      baseline: how the given image is resized to be compared with.
    """

    factor: int = 4
    condition: str = "low_res"
    n: int = 1000
    samples_per_input: int = 1
    guidances: tuple[float, ...] = ()
    seed: int = 0
    features: Patches = dataclasses.field(default_factory=Patches)
    baseline: pixels.Resampling = "bicubic"

    def __post_init__(self):
        require(self.factor > 1, "factor", self.factor, "nothing would be enlarged", "give at least 2")
        require(self.n > 1, "n", self.n, "two images at least are compared", "take 100 or more")
        fits = self.samples_per_input > 0
        require(fits, "samples_per_input", self.samples_per_input, "there is nothing to judge", "take 1 or 4")

    def __call__(self, subject: EvaluationInputs) -> Report:
        rows = restoration.evenly(np.zeros(len(subject.test["image"]), int), self.n)
        conditions = restoration.given(subject, self.condition, rows)
        truth, low_res = subject.test["image"][rows], conditions[self.condition]
        enlarged = Enlarged(self.factor, self.baseline)(low_res)
        fits = enlarged.shape == truth.shape
        require(fits, "factor", self.factor, f"{self.condition} is {low_res.shape}, images {truth.shape}",
                "give the factor between the two")  # fmt: skip
        samples = restoration.samples(self, subject, conditions, truth.shape, self.samples_per_input)
        values = {
            "evaluation": "super-resolution",
            "conditions": {"factor": self.factor, **restoration.stated(self, subject, len(rows))},
            **self.score(samples, enlarged, low_res, truth),
            "noise_losses": restoration.curves(subject),
        }
        table, caption = self.table(values), self.caption(values)
        shown = restoration.evenly(np.zeros(len(truth), int), SHOWN)
        small = np.clip(np.rint(levels(low_res)), 0, 255).astype(np.uint8)
        examples = {
            "given": small[shown],
            self.baseline: enlarged[shown],
            **restoration.shown(samples, shown),
            "truth": truth[shown],
        }
        names = [str(row) for row in rows[shown]]
        picture = restoration.drawn(examples, names, table, caption, values["noise_losses"])
        return Report(values, table, caption, picture)

    def score(
        self,
        samples: Mapping[float, np.ndarray],
        enlarged: np.ndarray,
        low_res: np.ndarray,
        truth: np.ndarray,
    ) -> dict[str, Any]:
        """The figures.

        Args:
          samples: by guidance, each uint8 [samples_per_input, n, height, width, channels].
          enlarged: the baseline's images, uint8 [n, height, width, channels].
          low_res: the given images [n, small_height, small_width, channels].
          truth: uint8 [n, height, width, channels].
        """
        distribution, power = self.features.fit(truth), radial_power(truth)

        def row(images: np.ndarray) -> dict[str, Any]:
            return {
                "frechet": frechet.frechet_distance(self.features.fit(images), distribution),
                "spectrum": spectrum_distance(radial_power(images), power),
                "consistency": paired.inconsistency(images, low_res, self.factor),
                "mean_colour_error": paired.mean_colour_error(images, truth),
                "psnr": paired.psnr(images, truth),
            }

        baseline = row(enlarged)
        rows = []
        for guidance, images in samples.items():
            scores = row(images[0])
            scores["baseline_over_frechet"] = restoration.ratio(baseline["frechet"], scores["frechet"])
            rows.append({"guidance": guidance, **scores, "diversity": paired.diversity(images)})
        half, other = truth[::2], truth[1::2]
        return {
            "samples": rows,
            "baseline": {"name": self.baseline, **baseline},
            "real": {
                "frechet": self.features.distance(half, other),
                "spectrum": spectrum_distance(radial_power(half), radial_power(other)),
                "consistency": paired.inconsistency(truth, low_res, self.factor),
            },
        }

    def table(self, values: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """The figures as rows of words."""
        samples, name = values["samples"], self.baseline
        names = {
            "frechet": "Frechet distance of patches",
            "baseline_over_frechet": f"{name}'s over this",
            "spectrum": "spectrum distance, log10",
            "consistency": "consistency RMS, levels",
            "mean_colour_error": "mean-colour error, levels",
            "psnr": "PSNR, dB",
        }
        if self.samples_per_input > 1:
            names["diversity"] = "diversity, levels"
        columns = (values["real"], values["baseline"], *samples)
        return [
            ("", "real", name, *(f"guidance {row['guidance']:g}" for row in samples)),
            *((label, *(number(row.get(key)) for row in columns)) for key, label in names.items()),
        ]

    def caption(self, values: Mapping[str, Any]) -> list[str]:
        """Under which conditions the figures hold."""
        facts = values["conditions"]
        lines = [
            f"{facts['n']} of {facts['test_images']} test images, enlarged {self.factor} times, "
            f"{facts['features']}, seed {self.seed}",
            "real: every second test image against the others; consistency of the truth",
            "PSNR says little about quality: a blurred image scores best",
            restoration.made_with(facts),
        ]
        return [line for line in lines if line]
