"""Evaluation of an image model, with or without classes: are samples correct, realistic, diverse and new?

Four questions, because each alone is easy to satisfy: noise is new, training images are realistic, one perfect image
of each class is correct.
"""

import dataclasses

from jaxdiff.errors import expect, positive
from jaxdiff.evaluation.classifiers.svm import SvmClassifier
from jaxdiff.evaluation.evaluation import Evaluation
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics.accuracy import Accuracy
from jaxdiff.evaluation.metrics.bits_per_dim import Likelihood
from jaxdiff.evaluation.metrics.frechet import Frechet
from jaxdiff.evaluation.metrics.memorization import Memorization
from jaxdiff.evaluation.metrics.precision_recall import ALWAYS_KS, PrecisionRecall
from jaxdiff.evaluation.metrics.spread import ClassSpread
from jaxdiff.evaluation.protocols import EvaluationInputs, FeatureExtractor, Report, TrainableClassifier
from jaxdiff.evaluation.settings import check_sampling


@dataclasses.dataclass(frozen=True)
class ImageEvaluation:
    """Accuracy, Fréchet distance, precision and recall, spread and memorization in one feature space.

    A preset of `Evaluation`, which takes any metrics.

    Attributes:
      features: feature space of all distances.
      classifier: decides whether a sample shows the requested class; fitted to the training images.
      n: number of samples at each guidance scale.
      k: number of neighbours of the headline precision, recall, density and coverage; 3, 4 and 5 are always reported.
      guidances: guidance scales, in addition to 1 (off) and the scale of the sampling recipe.
      seed: seed of the samples' noise, and of the choice of real images to compare with.
      likelihood: measures the bits per dimension of test images; None for not at all, since it is costly.
      every: training steps between evaluations; 0 evaluates only when training ends.
      reference: of the Fréchet distance: "test", "train", or a file of statistics.
    """

    features: FeatureExtractor = Pixels()
    classifier: TrainableClassifier = SvmClassifier()
    n: int = 1000
    k: int = 5
    guidances: tuple[float, ...] = ()
    seed: int = 0
    likelihood: Likelihood | None = None
    every: int = 0
    reference: str = "test"

    def __post_init__(self):
        positive(self, "k")
        check_sampling(self.seed, self.guidances)
        least = max(self.k, *ALWAYS_KS)
        expect(
            self.n > least, "n", self.n, f"more than {least}, the number of neighbours", "use 1000 or more"
        )
        expect(self.every >= 0, "every", self.every, "a number of steps >= 0", "give 0 for only at the end")

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation by these metrics."""
        metrics = (
            Accuracy(self.classifier),
            Frechet(self.features, self.reference),
            PrecisionRecall(self.features, self.k),
            ClassSpread(self.features),
            Memorization(self.features),
        )
        return Evaluation(metrics, self.n, self.guidances, self.seed, self.likelihood, self.every)

    def __call__(self, inputs: EvaluationInputs) -> Report:
        return self.evaluation(inputs)
