"""Stages: several models sampled in sequence, where samples of one fill a condition of the next (unCLIP, cascades)::

stages = Stages.load("runs/karlo")
images = stages(text="a lighthouse", seed=0, steps={"prior": 25}, guidance={"prior": 4.0, "decoder": 8.0})
images = stages(image=photo)  # the embedding of a photograph, in place of the prior's
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from flax.core import FrozenDict

from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.errors import expect
from jaxdiff.generation.cascade import stage_seed
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.handover import Handover
from jaxdiff.generation.photographs import Photographs, embedding
from jaxdiff.runs import weights
from jaxdiff.runs.stages import Stage, read_staged

Model = Generator | Handover
"""A stage: one model, or two of which the second takes the last steps."""

Scales = float | Mapping[str, float]
"""A guidance scale, or one for each of some conditions."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stages:
    """Models in sequence: the samples of a stage, an embedding or images, fill a condition of later stages.

    Every stage keeps its own sampler, grid, steps and guidance. Conditions are shared by name. A stage whose result is
    given is left out, and so are those before it: ``image=vector`` takes the place of a prior.

    Attributes:
      models: by the names of the stages, in the order of sampling.
      gives: for each stage but the last, the condition of later stages that its samples fill.
      photographs: by condition, what makes its value of a photograph.
      noises: names under which `noise` has that of an augmented condition (`NoiseAugmentedEmbedding`), and its name.
    """

    models: Mapping[str, Model]
    gives: Mapping[str, str] = FrozenDict()
    photographs: Mapping[str, Photographs] = FrozenDict()
    noises: Mapping[str, str] = FrozenDict()

    def __post_init__(self):
        names = list(self.models)
        expect(len(names) > 0, "models", names, "at least one stage", "add one")
        for i, name in enumerate(names[:-1]):
            filled = self.gives.get(name)
            later = {each for after in names[i + 1 :] for each in _conditions(self.models[after])}
            fix = f"choose from {', '.join(sorted(later)) or 'no conditions'}"
            expect(filled in later, f"gives.{name}", filled, "a condition of a later stage", fix)
            self._check_shapes(name, names[i + 1 :])

    @classmethod
    def load(cls, workdir: str, packages: Sequence[str] = (), with_weights: bool = True) -> "Stages":
        """The stages of a staged run, such as one that `jaxdiff.convert` makes of a published unCLIP.

        Args:
          workdir: the folder of the staged run.
          packages: packages other than jaxdiff whose classes the stored configs may build.
          with_weights: as for a `Generator`.

        Raises:
          UserError: there is no staged run, or a stage is missing.
        """
        staged = read_staged(workdir)
        models = {stage.name: _load(stage, packages, with_weights) for stage in staged.stages}
        origins = {name: each.weights for name, each in staged.encoders.items()}
        mesh = _first(next(iter(models.values()))).mesh
        trees = weights.load(origins, mesh, workdir) if with_weights else {}
        photographs = {
            name: Photographs(each.encoder, trees.get(name)) for name, each in staged.encoders.items()
        }
        gives = {stage.name: stage.gives for stage in staged.stages if stage.gives is not None}
        return cls(models, gives, photographs, dict(staged.noises))

    def __call__(self, n: int | None = None, **options: Any) -> np.ndarray:
        """The samples of the last stage; see `run`."""
        return list(self.run(n, **options).values())[-1]

    def run(
        self,
        n: int | None = None,
        *,
        seed: int = 0,
        steps: int | Mapping[str, int] | None = None,
        guidance: float | Mapping[str, Scales] | None = None,
        negative: Mapping[str, Any] | None = None,
        noise: Mapping[str, np.ndarray] = FrozenDict(),
        levels: Mapping[str, float] = FrozenDict(),
        **conditions: Any,
    ) -> dict[str, np.ndarray]:
        """The samples of each stage that is sampled, by its name.

        Images between stages are floats, not rounded to bytes; those of the last stage are uint8
        [n, height, width, channels].

        Args:
          n: how many; may be left out if a condition or `noise` gives it.
          seed: sample i of a seed is always the same; each stage has noise of its own.
          steps: of every stage, or by stage, instead of the recipes'.
          guidance: a scale for every stage that is guided, or scales by stage, instead of the recipes'.
          negative: conditions to guide images away from, instead of no condition.
          noise: standard normal floats by stage: the start [n, *data_shape]; or with a sampler that adds noise all of
            its draws, [draws, n, *data_shape], of which draw 0 is the start and draw k is added by step k. Also that
            of augmented conditions, by the names in `noises`. What is left out is drawn from the seed.
          levels: noise levels of noise-augmented conditions, instead of their own.
          **conditions: as for a `Generator`; each stage takes its own. A condition with a `Photographs` takes a
            photograph, too, uint8 [height, width, 3]; where it is given, conditions that have a null may be left out.

        Raises:
          UserError: an option for a stage or a condition that is not there, or as a `Generator`.
        """
        chosen = self.chosen(
            steps=steps, guidance=guidance, negative=negative, noise=noise, levels=levels, **conditions
        )
        every = steps if isinstance(steps, Mapping) else dict.fromkeys(chosen, steps)
        models = {name: _with_steps(self.models[name], every.get(name)) for name in chosen}
        noises = {name: _noise(name, _first(models[name]), noise.get(name)) for name in chosen}
        known, found, optional = self._embedded(conditions), {}, self._optional(conditions)
        n = self.count(conditions, noise) if n is None else n
        for name, model in models.items():
            own = self._conditions_of(model, known, levels, noise, optional)
            options: dict[str, Any] = own | noises[name] | _options(name, model, guidance, negative or {})
            last, number = name == chosen[-1], list(self.models).index(name)
            samples = model(n, seed=stage_seed(seed, number), rounded=last, **options)
            found[name] = samples if last or samples.ndim < 4 else np.clip(samples, -1, 1)
            known |= {self.gives[name]: found[name]} if name in self.gives else {}
            n = len(samples)
        return found

    def sampled(self, given: Collection[str]) -> tuple[list[str], list[str]]:
        """The stages that are left out, since the result of the last of them is `given`; and the others."""
        names = list(self.models)
        last = max((i for i, name in enumerate(names) if self.gives.get(name) in given), default=-1)
        return names[: last + 1], names[last + 1 :]

    def conditions(self, given: Collection[str] = ()) -> dict[str, Condition]:
        """The conditions that can be given, by name, where those of the names `given` are.

        A photograph's is an `ImageCondition`. Where no stage is left out, results of stages are not among them.
        """
        chosen = self.sampled(given)[1]
        filled = {self.gives[name] for name in chosen if name in self.gives}
        found = {
            name: condition
            for stage in reversed(chosen)
            for name, condition in _conditions(self.models[stage]).items()
            if name not in filled or name in given
        }
        photographs = {name: ImageCondition(3) for name in self.photographs if name in found or name in given}
        return {**found, **photographs}

    @property
    def every_condition(self) -> dict[str, Condition]:
        """The conditions of all stages by name, results of stages among them; earlier stages have precedence."""
        models = reversed(list(self.models.values()))
        return {name: each for model in models for name, each in _conditions(model).items()}

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of a sample of the last stage."""
        return _first(list(self.models.values())[-1]).image_shape

    def may_be_left_out(self, given: Collection[str]) -> set[str]:
        """Names of conditions that need no value where those of the names `given` have one."""
        models = [_conditions(self.models[name]) for name in self.sampled(given)[1]]
        if not self._optional(given):
            return set()
        return {name for each in models for name, condition in each.items() if condition.null != "none"} - {
            *given
        }

    def _optional(self, given: Collection[str]) -> bool:
        """Whether conditions with a null may be left out, since an embedding or an image stands for them."""
        return any(name in given for name in (*self.gives.values(), *self.photographs))

    def chosen(
        self,
        *,
        steps: int | Mapping[str, int] | None = None,
        guidance: float | Mapping[str, Scales] | None = None,
        negative: Mapping[str, Any] | None = None,
        noise: Mapping[str, np.ndarray] = FrozenDict(),
        levels: Mapping[str, float] = FrozenDict(),
        **conditions: Any,
    ) -> list[str]:
        """The names of the stages that `run` samples with these arguments.

        Raises:
          UserError: an option for a stage or a condition that is not there.
        """
        names, (skipped, chosen) = [*self.every_condition], self.sampled(conditions)
        results = f" (the result of {', '.join(skipped)} is given)" if skipped else ""
        stages = {"steps": steps, "guidance": guidance, "noise": noise}
        others = {"condition": conditions, "negative": negative, "levels": levels}
        for field, given in {**others, **stages}.items():
            known = chosen if field in stages else names
            known = [*known, *self.noises] if field == "noise" else known
            for name in given if isinstance(given, Mapping) else ():
                kind = "a stage" if field in stages else "a condition of some stage"
                expect(name in known, field, name, f"{kind}{results}", f"there are: {', '.join(known)}")
        return chosen

    def _check_shapes(self, name: str, later: Sequence[str]) -> None:
        """Raise `UserError` unless the samples of a stage are values of the condition that they fill."""
        filled, shape = self.gives[name], _first(self.models[name]).image_shape
        for after in later:
            condition = _conditions(self.models[after]).get(filled)
            if condition is None:
                continue
            example = condition.stored_example(1, _first(self.models[after]).data_shape)
            if isinstance(example, Mapping) and "value" not in example:
                continue  # it reads several kinds of values, and checks them itself
            value = np.shape(example["value"] if isinstance(example, Mapping) else example)[1:]
            fits = len(value) == len(shape) and value[-1] == shape[-1]
            fix = "use models that were made for each other"
            expect(
                fits,
                f"gives.{name}",
                filled,
                f"samples {list(shape)} as values {list(value)} of {after}",
                fix,
            )

    def _embedded(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """The conditions, with embeddings in place of photographs."""
        return {
            name: embedding(self.photographs[name], value) if name in self.photographs else value
            for name, value in conditions.items()
        }

    def count(self, given: Collection[str], noise: Mapping[str, np.ndarray]) -> int | None:
        """The number of samples that noise implies, where conditions of the names `given` are; None without noise."""
        chosen = self.sampled(given)[1]
        ranks = {name: len(_first(self.models[name]).data_shape) for name in chosen}
        ranks |= dict.fromkeys(self.noises, 1)
        own = [(ranks[name], np.shape(value)) for name, value in noise.items() if name in ranks]
        return next((shape[-rank - 1] for rank, shape in own if len(shape) > rank), None)

    def _conditions_of(
        self,
        model: Model,
        known: Mapping[str, Any],
        levels: Mapping[str, float],
        noise: Mapping[str, np.ndarray],
        optional: bool,
    ) -> dict[str, Any]:
        """The values of a stage's conditions, with noise levels and given noise."""
        has = _conditions(model)
        own = {name: value for name, value in known.items() if name in has}
        if optional:
            own |= {name: None for name, each in has.items() if name not in own and each.null != "none"}
        for name in own.keys() & levels.keys():
            own[name] = has[name].with_level(own[name], levels[name])
        for alias, name in self.noises.items():
            if alias in noise and name in own:
                own[name] = has[name].with_noise(own[name], noise[alias])
        return own


def _load(stage: Stage, packages: Sequence[str], with_weights: bool) -> Model:
    load = functools.partial(Generator.load, packages=packages, with_weights=with_weights)
    first = load(stage.workdir)
    return first if stage.last is None else Handover(first, load(stage.last), last=1)


def _first(model: Model) -> Generator:
    """The model itself, or the one that begins."""
    return model.first if isinstance(model, Handover) else model


def _conditions(model: Model) -> dict[str, Condition]:
    """The conditions of a stage, by name."""
    parts = (model.second, model.first) if isinstance(model, Handover) else (model,)
    return {name: each for part in parts for name, each in part.denoiser.conditioner.conditions.items()}


def _with_steps(model: Model, steps: int | None) -> Model:
    """The stage with another number of steps."""
    if steps is None:
        return model
    if isinstance(model, Handover):
        first, second = (_with_steps(part, steps) for part in (model.first, model.second))
        return dataclasses.replace(model, first=first, second=second)
    return dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, steps=steps))


def _options(
    name: str,
    model: Model,
    guidance: float | Mapping[str, Scales] | None,
    negative: Mapping[str, Any],
) -> dict[str, Any]:
    """The options of a stage's call besides its conditions and its noise."""
    first = _first(model)
    scale: Any = guidance.get(name) if isinstance(guidance, Mapping) else guidance
    if not isinstance(guidance, Mapping) and first.recipe.guidance.scale == 1:
        scale = None
    images = len(first.image_shape) == 3
    instead = {name: value for name, value in negative.items() if images and name in _conditions(model)}
    return {"guidance": scale, "negative": instead or None}


def _noise(name: str, model: Generator, noise: np.ndarray | None) -> dict[str, np.ndarray]:
    """The start and the draws of the steps of a stage's noise."""
    if noise is None:
        return {}
    array, shape, draws = np.asarray(noise), model.data_shape, 1 + model.steps_with_noise
    got, fix = f"{array.dtype}{list(array.shape)}", "give such floats"
    alone = array.ndim == len(shape) + 1
    fits = array.shape[-len(shape) :] == shape and (alone or array.shape[: -len(shape) - 1] == (draws,))
    listed = ", ".join(map(str, shape))
    expected = (
        f"[n, {listed}]" if draws == 1 else f"[{draws}, n, {listed}] for {draws} draws, or [n, {listed}]"
    )
    expect(fits and np.issubdtype(array.dtype, np.floating), f"noise.{name}", got, expected, fix)
    if alone:
        return {"noise": array}
    return {"noise": array[0]} | ({"draws": array[1:]} if draws > 1 else {})
