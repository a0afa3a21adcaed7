"""Cascades: several models sampled in sequence, each with the images of the one before as a condition.

Ho et al. 2022, "Cascaded Diffusion Models for High Fidelity Image Generation"::

    cascade = Cascade((Generator.load("runs/base"), Generator.load("runs/sr")))
    images = cascade(label=[3, 1, 4], levels={"low_res": 0.1})
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.conditioning.condition import Condition
from jaxdiff.data import images as image_arrays
from jaxdiff.errors import UserError, expect
from jaxdiff.generation.checks import check_class_names
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.steps import OnStep, part_of


@dataclasses.dataclass(frozen=True, eq=False)
class Cascade:
    """Cascade: a base model, and stages that take the images of the stage before as a condition.

    Every stage keeps its own sampler, grid and guidance. Conditions are shared by name.

    Attributes:
      stages: the base model, then the stages in order.
      field: name of the condition that is passed on; None if every stage has only one image condition.
    """

    stages: Sequence[Generator]
    field: str | None = None

    def __post_init__(self):
        count = len(self.stages)
        expect(count > 1, "stages", count, "two models or more", "add a stage")
        for number in range(1, count):
            before, after = self.stages[number - 1 : number + 1]
            name = self.field_of(number)
            shape = after.denoiser.conditioner.conditions[name].image_shape(after.data_shape)
            channels = 0 if shape is None else shape[-1]
            expect(
                channels == before.image_shape[2],
                "stages",
                number,
                f"{before.image_shape[2]} channels in {name}, as in the images before",
                "use models for images of the same kind",
                str(channels),
            )
        check_class_names("stages", [stage.denoiser for stage in self.stages])

    def __call__(self, n: int | None = None, **options: Any) -> np.ndarray:
        """The images of the last stage; see `run`."""
        return self.run(n, **options)[-1]

    def run(
        self,
        n: int | None = None,
        *,
        seed: int = 0,
        guidance: float | Mapping[str, float] | None = None,
        levels: Mapping[str, float] | None = None,
        on_step: OnStep | None = None,
        **conditions: Any,
    ) -> list[np.ndarray]:
        """The images of every stage, uint8 [n, height, width, channels].

        Args:
          n: how many; may be left out if a condition has one value per image.
          seed: image i of a seed is always the same; each stage has noise of its own (`stage_seed`).
          guidance: replaces the guidance of every stage; scales by name act in the stages with these conditions.
          levels: noise levels of noise-augmented conditions (`NoiseAugmented`), instead of their own.
          on_step: as for a `Generator`; steps are those of all stages together, and previews have the size of the
            images of their stage.
          **conditions: as for a `Generator`; each stage takes its own.

        Raises:
          UserError: a condition or a level that no stage has, or as a `Generator`.
        """
        self._check_names(conditions, levels or {}, guidance if isinstance(guidance, Mapping) else {})
        images: list[np.ndarray] = []
        if on_step is not None:
            n = self.stages[0].number(n, **self._conditions_of(0, conditions, images, levels or {}))
        for number, stage in enumerate(self.stages):
            own = self._conditions_of(number, conditions, images, levels or {})
            images.append(
                stage(
                    len(images[-1]) if images else n,
                    seed=stage_seed(seed, number),
                    guidance=_guidance_of(stage, guidance),
                    on_step=None if on_step is None else self._part_of(on_step, number, n or 1),
                    **own,
                )
            )
        return images

    def _part_of(self, on_step: OnStep, number: int, n: int) -> OnStep:
        """The function for the steps of one stage."""
        counts = [stage.observed_steps(n) for stage in self.stages]
        return part_of(on_step, sum(counts[:number]), sum(counts))

    @property
    def conditions(self) -> dict[str, Condition]:
        """The conditions of all stages by name; later stages have precedence."""
        return {
            name: condition
            for stage in self.stages
            for name, condition in stage.denoiser.conditioner.conditions.items()
        }

    def field_of(self, number: int) -> str:
        """The condition of a stage (from 1 on) that takes the images of the stage before."""
        stage = self.stages[number]
        conditions = stage.denoiser.conditioner.conditions
        found = [name for name in conditions if conditions[name].image_shape(stage.data_shape) is not None]
        if self.field is not None and self.field in found:
            return self.field
        expect(
            len(found) == 1,
            "cascade_field",
            self.field,
            f"one of the image conditions of stage {number}: {', '.join(found) or 'none'}",
            "name the one that takes the images of the stage before",
        )
        return found[0]

    def _check_names(self, *named: Mapping[str, Any]) -> None:
        names = sorted(self.conditions)
        for field, given in zip(("condition", "levels", "guidance"), named, strict=True):
            for name in given:
                expect(
                    name in names, field, name, "a condition of some stage", f"there are: {', '.join(names)}"
                )

    def _conditions_of(
        self,
        number: int,
        conditions: Mapping[str, Any],
        images: Sequence[np.ndarray],
        levels: Mapping[str, float],
    ) -> dict[str, Any]:
        """The values of a stage's conditions, with the images of the stages before it and with noise levels."""
        has = self.stages[number].denoiser.conditioner.conditions
        own = {name: value for name, value in conditions.items() if name in has}
        if images:
            name = self.field_of(number)
            if name in own:
                raise UserError(
                    f"{name}: expected no value, since the stage before generates it, got one. Fix: leave it out"
                )
            own[name] = images[-1]
        for name in own.keys() & levels.keys():
            own[name] = has[name].with_level(own[name], levels[name])
        return own


def consistency(images: Sequence[np.ndarray]) -> list[float]:
    """For each stage but the first: the difference of its reduced images to the images of the stage before.

    The root mean square over all pixels, in levels of 0 to 255. Images are reduced by means over areas.
    """
    differences = []
    for small, large in itertools.pairwise(images):
        size = small.shape[1:3]
        reduced = np.stack([image_arrays.resize(image, size, "area") for image in large])
        differences.append(float(np.sqrt(np.mean(np.square(reduced.astype(np.float32) - small)))))
    return differences


def stage_seed(seed: int, stage: int) -> int:
    """A distinct seed per stage: noise of several resolutions from one key would share values."""
    return seed if stage == 0 else int(np.random.SeedSequence((seed, stage)).generate_state(1)[0])


def _guidance_of(
    stage: Generator, guidance: float | Mapping[str, float] | None
) -> float | Mapping[str, float] | None:
    """The guidance of one stage: a scale for all, or the scales of its own conditions; None for its recipe's."""
    if not isinstance(guidance, Mapping):
        return guidance
    names = stage.denoiser.conditioner.conditions
    return {name: scale for name, scale in guidance.items() if name in names} or None
