"""Stages: several models sampled in sequence, where samples of one fill a condition of the next (unCLIP, cascades)::

stages = Stages.load("runs/karlo")
images = stages(text="a lighthouse", seed=0, steps={"prior": 25}, guidance={"prior": 4.0, "decoder": 8.0})
images = stages(image=photo)  # the embedding of a photograph, in place of the prior's
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from flax.core import FrozenDict

from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.errors import expect
from jaxdiff.generation.cascade import stage_seed
from jaxdiff.generation.photographs import Photographs, embedding
from jaxdiff.generation.stage_models import Model, conditions_of, first_model, load, noise_of, with_steps
from jaxdiff.runs import weights
from jaxdiff.runs.stages import read_staged

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
            later = {each for after in names[i + 1 :] for each in conditions_of(self.models[after])}
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
          UserError: there is no staged run, or a stage is missing, or two were trained with different image encoders.
        """
        staged = read_staged(workdir)
        weights.check_one_encoder({each.name: (each.workdir, each.gives) for each in staged.stages})
        models = {stage.name: load(stage, packages, with_weights) for stage in staged.stages}
        origins = {name: each.weights for name, each in staged.encoders.items()}
        mesh = first_model(next(iter(models.values()))).mesh
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
        models = {name: with_steps(self.models[name], _of_stage(steps, name)) for name in chosen}
        noises = {name: noise_of(name, first_model(models[name]), noise.get(name)) for name in chosen}
        known, found, optional = self._embedded(conditions), {}, self._optional(conditions)
        n = self.count(conditions, noise) if n is None else n
        for name, model in models.items():
            own = self._own_conditions(model, known, levels, noise, optional)
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
            for name, condition in conditions_of(self.models[stage]).items()
            if name not in filled or name in given
        }
        photographs = {name: ImageCondition(3) for name in self.photographs if name in found or name in given}
        return {**found, **photographs}

    @property
    def every_condition(self) -> dict[str, Condition]:
        """The conditions of all stages by name, results of stages among them; earlier stages have precedence."""
        models = reversed(list(self.models.values()))
        return {name: each for model in models for name, each in conditions_of(model).items()}

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of a sample of the last stage."""
        return first_model(list(self.models.values())[-1]).image_shape

    def may_be_left_out(self, given: Collection[str]) -> set[str]:
        """Names of conditions that need no value where those of the names `given` have one."""
        models = [conditions_of(self.models[name]) for name in self.sampled(given)[1]]
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
          UserError: an option for a stage or a condition that is not there, steps that are no number above zero, or
            noise of another shape.
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
        for name in chosen:
            number, scales = _of_stage(steps, name), _of_stage(guidance, name)
            model, fix = self.models[name], "give a whole number, such as 20"
            expect(number is None or number > 0, f"steps.{name}", number, "a number of steps > 0", fix)
            for condition in scales if isinstance(scales, Mapping) else ():
                own = conditions_of(model)
                fix = f"{name} has: {', '.join(own) or 'none'}"
                expect(condition in own, f"guidance.{name}", condition, "a condition of this stage", fix)
            noise_of(name, first_model(with_steps(model, number)), noise.get(name))
        return chosen

    def _check_shapes(self, name: str, later: Sequence[str]) -> None:
        """Raise `UserError` unless the samples of a stage are values of the condition that they fill."""
        filled, shape = self.gives[name], first_model(self.models[name]).image_shape
        for after in later:
            condition = conditions_of(self.models[after]).get(filled)
            if condition is None:
                continue
            example = condition.stored_example(1, first_model(self.models[after]).data_shape)
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
        ranks = {name: len(first_model(self.models[name]).data_shape) for name in chosen}
        ranks |= dict.fromkeys(self.noises, 1)
        own = [(ranks[name], np.shape(value)) for name, value in noise.items() if name in ranks]
        return next((shape[-rank - 1] for rank, shape in own if len(shape) > rank), None)

    def _own_conditions(
        self,
        model: Model,
        known: Mapping[str, Any],
        levels: Mapping[str, float],
        noise: Mapping[str, np.ndarray],
        optional: bool,
    ) -> dict[str, Any]:
        """The values of a stage's conditions, with noise levels and given noise."""
        has = conditions_of(model)
        own = {name: value for name, value in known.items() if name in has}
        if optional:
            own |= {name: None for name, each in has.items() if name not in own and each.null != "none"}
        for name in own.keys() & levels.keys():
            own[name] = has[name].with_level(own[name], levels[name])
        for alias, name in self.noises.items():
            if alias in noise and name in own:
                own[name] = has[name].with_noise(own[name], noise[alias])
        return own


def _of_stage(option: Any, name: str) -> Any:
    """An option's value for the stage `name`, where one is for all or there is one for each of some."""
    return option.get(name) if isinstance(option, Mapping) else option


def _options(
    name: str,
    model: Model,
    guidance: float | Mapping[str, Scales] | None,
    negative: Mapping[str, Any],
) -> dict[str, Any]:
    """The options of a stage's call besides its conditions and its noise."""
    first = first_model(model)
    scale: Any = _of_stage(guidance, name)
    if not isinstance(guidance, Mapping) and first.recipe.guidance.scale == 1:
        scale = None
    images = len(first.image_shape) == 3
    instead = {name: value for name, value in negative.items() if images and name in conditions_of(model)}
    return {"guidance": scale, "negative": instead or None}
