"""From a request to generators: one for each setting, which share their weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath
from flax import linen as nn

from jaxdiff import config as configs
from jaxdiff.config.overrides import override
from jaxdiff.errors import UserError, expect
from jaxdiff.evaluation.evaluation import Evaluation
from jaxdiff.experiment import Experiment
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.recipes import sampled_by
from jaxdiff.runs import classes
from jaxdiff.runs.restore import has_untrained, restore_untrained
from jaxdiff.runs.stages import read_model_config
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sweeps.guidance import recipe_of, resolved
from jaxdiff.sweeps.negative import negative_of
from jaxdiff.sweeps.running import Candidate
from jaxdiff.sweeps.settings import OWN, Setting, unique
from jaxdiff.training import snapshots
from jaxdiff.training.power_ema import PowerEma, check_std
from jaxdiff.training.state import abstract_params
from jaxdiff.trees import merge

Overrides = tuple[tuple[str, str], ...]


class Candidates(NamedTuple):
    """The generators of settings.

    Attributes:
      plain: the run's own.
      made: that of each setting.
      left_out: settings without one, in words: a rule refuses their scale.
    """

    plain: Generator
    made: list[Candidate]
    left_out: list[str]


@dataclasses.dataclass(frozen=True)
class Request:
    """A run, as the command line names it.

    Attributes:
      workdir, step, overrides, packages, guiding_model: see `Generator.load`.
    """

    workdir: str
    step: int | None = None
    overrides: Overrides = ()
    packages: tuple[str, ...] = ()
    guiding_model: str | tuple[str, int] | None = None

    def experiment(self) -> Experiment:
        """The run's experiment, with the labels of its class table."""
        experiment = configs.build(self.config(), packages=self._allowed)
        if not experiment.uses_labels:
            return experiment
        return experiment.with_classes(classes.of_run(self.workdir, experiment.data))

    def config(self) -> Any:
        """The run's config with the changes of the command line."""
        config = read_model_config(self.workdir)
        for path, text in self.overrides:
            override(config, path, text, packages=self._allowed)
        return config

    def candidates(
        self, settings: Sequence[Setting], with_weights: bool = True, models: "Models | None" = None
    ) -> "Candidates":
        """A generator for each setting.

        Args:
          with_weights: False checks everything, and reads no weights.
          models: what this request has loaded before; None loads it now.

        Raises:
          UserError: a setting that the run cannot be sampled with.
        """
        found, left_out = self._recipes(settings)
        models = models or Models(self, with_weights)
        conditions = models.of(None).denoiser.conditioner.conditions
        made = [
            Candidate(
                setting, _sampling(models.of(setting.ema), recipe), negative_of(setting.negative, conditions)
            )
            for setting, recipe in found
        ]
        used = self.guiding_model is None or any(each.generator.guiding_model for each in made)
        fix = "add --rule autoguidance, or leave it out"
        expect(used, "--guiding-model", self.guiding_model, "a setting that uses it", fix, "none")
        for candidate in () if with_weights else made:
            _check(candidate.generator)
        return Candidates(models.of(None), made, left_out)

    def _recipes(self, settings: Sequence[Setting]) -> tuple[list[tuple[Setting, Recipe]], list[str]]:
        """The different recipes, with their settings, and the settings that are left out."""
        found, left_out, bases = [], [], {}
        for setting in settings:
            base = (setting.sampler, setting.steps)
            bases[base] = bases[base] if base in bases else self._recipe(*base)
            try:
                recipe = recipe_of(bases[base], setting)
                found.append((resolved(setting, recipe), recipe))
            except UserError as error:
                if setting.rule == OWN or not error.message.startswith("--guidance"):
                    raise
                left_out.append(f"left out: {setting} ({error.message.partition(', got')[0]})")
        used = {setting.rule for setting, _ in found}
        refused = [setting for setting in settings if setting.rule not in used]
        if refused:
            recipe_of(bases[refused[0].sampler, refused[0].steps], refused[0])  # raises
        return unique(found, lambda setting, recipe: (setting.ema, setting.negative, recipe)), left_out

    def _recipe(self, sampler: str, steps: int | None) -> Recipe:
        changes = () if steps is None else (("sampling.steps", str(steps)),)
        config = read_model_config(self.workdir)
        name = None if sampler == OWN else sampler
        return sampled_by(name, config, self._allowed, (*self.overrides, *changes)).recipe

    def load(self, with_weights: bool) -> Generator:
        """The run's generator."""
        return Generator.load(
            self.workdir,
            step=self.step,
            overrides=self.overrides,
            packages=self.packages,
            guiding_model=self.guiding_model,
            with_weights=with_weights,
        )

    @property
    def _allowed(self) -> tuple[str, ...]:
        return ("jaxdiff", *self.packages)


def evaluation_of(experiment: Experiment, n: int | None, seed: int | None) -> Evaluation:
    """The evaluation of an experiment, with another number of samples and another seed if they are given.

    Raises:
      UserError: the experiment has none, or one that is not made of metrics.
    """
    given = experiment.evaluation
    found = given if isinstance(given, Evaluation) else getattr(given, "evaluation", None)
    fix = "pass --config.evaluation=jaxdiff.evaluation.reports.class_conditional:ImageEvaluation"
    expected = "an evaluation made of metrics, such as ImageEvaluation"
    expect(isinstance(found, Evaluation), "config.evaluation", given, expected, fix, type(given).__name__)
    assert isinstance(found, Evaluation)
    changes = {"samples": n, "seed": seed}
    return dataclasses.replace(found, **{name: value for name, value in changes.items() if value is not None})


class Models:
    """The generators of a request by the length of their average of the weights; each is loaded once."""

    def __init__(self, request: Request, with_weights: bool = True):
        self._request, self._with_weights = request, with_weights
        self._known: dict[float | None, Generator] = {None: request.load(with_weights)}

    def of(self, length: float | None) -> Generator:
        if length not in self._known:
            self._known[length] = self._averaged(float(length or 0))
        return self._known[length]

    def _averaged(self, length: float) -> Generator:
        """The generator with an average that is computed after training, see `jaxdiff.training.snapshots`."""
        request, plain = self._request, self._known[None]
        experiment = request.experiment()
        kind, fix = (
            type(experiment.ema).__name__,
            "train with ema=PowerEma(snapshot_every=...), or leave it out",
        )
        ema = experiment.ema
        expect(isinstance(ema, PowerEma), "--ema", length, "a run with PowerEma", fix, kind)
        check_std("--ema", length)
        if not self._with_weights or not isinstance(ema, PowerEma):
            return plain
        untrained, folder = experiment.optimizer.frozen, epath.Path(request.workdir).expanduser()
        abstract, _ = abstract_params(experiment.task, plain.mesh, untrained)
        params, _ = snapshots.reconstruct(request.workdir, ema, abstract, length, request.step)
        if has_untrained(folder):
            params = merge(params, restore_untrained(experiment, folder, plain.mesh))
        return dataclasses.replace(plain, params=experiment.sampled.full_params(params, plain.frozen))


def _sampling(generator: Generator, recipe: Recipe) -> Generator:
    """The generator with a recipe, and without its guiding model where the guidance uses none."""
    inner: Any = recipe.guidance
    while hasattr(inner, "guidance"):
        inner = inner.guidance
    alone = isinstance(inner, ClassifierFree | PerCondition)
    return dataclasses.replace(
        generator, recipe=recipe, guiding_model=None if alone else generator.guiding_model
    )


def _check(generator: Generator) -> None:
    """Raise `UserError` where a generator, which needs no weights, lacks something."""
    generator.check()
    generator.check_nulls()
    recipe = generator.recipe
    process: Any = recipe.process or generator.denoiser.process
    if not isinstance(process, nn.Module):  # a learned one needs its parameters
        recipe.plan(process)
