"""Several models sampled as one: each enlarges, or otherwise completes, what the one before has made.

Ho et al. 2022, "Cascaded Diffusion Models for High Fidelity Image Generation"::

    cascade = Cascade((Generator.load("runs/base"), Generator.load("runs/sr")))
    images = cascade(label=[3, 1, 4], levels={"low_res": 0.1})
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.data import images as pictures
from jaxdiff.errors import require
from jaxdiff.generation import inputs
from jaxdiff.generation.generator import Generator


@dataclasses.dataclass(frozen=True, eq=False)
class Cascade:
    """Stages, of which each but the first has a condition that is an image: what the stage before has made.

    Every stage keeps its own sampler, grid and guidance. Conditions are shared by name.

    Attributes:
      stages: the first one, then those that follow it.
      field: name of the condition that is handed over; None where every stage has but one image among its conditions.
    """

    stages: Sequence[Generator]
    field: str | None = None

    def __post_init__(self):
        require(
            len(self.stages) > 1, "stages", len(self.stages), "nothing follows", "give two models or more"
        )
        for number in range(1, len(self.stages)):
            before, after = self.stages[number - 1 : number + 1]
            name = self.field_of(number)
            dummy = inputs.image_of(after.denoiser.conditioner.conditions[name], after.image_shape)
            channels = 0 if dummy is None else dummy.shape[-1]
            require(
                channels == before.image_shape[2], "stages", number,
                f"its {name} has {channels} channels, the images before have {before.image_shape[2]}",
                "use models for images of the same kind",
            )  # fmt: skip

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
        **conditions: Any,
    ) -> list[np.ndarray]:
        """The images of every stage, uint8 [n, height, width, channels].

        Args:
          n: how many; may be left out if a condition tells.
          seed: image i of a seed is always the same; stages draw noise of their own.
          guidance: in place of that of every stage; scales by name go to the stages that have these conditions.
          levels: noise levels of conditions that are made noisy (`NoiseAugmented`), in place of their own.
          **conditions: as for a `Generator`; a stage takes those that it has.

        Raises:
          UserError: a condition or a level that no stage has, or as a `Generator`.
        """
        names = {name for stage in self.stages for name in stage.denoiser.conditioner.conditions}
        scales = guidance if isinstance(guidance, Mapping) else {}
        for field, given in (("condition", conditions), ("levels", levels or {}), ("guidance", scales)):
            for name in given:
                require(
                    name in names, field, name, "no stage has it", f"there are: {', '.join(sorted(names))}"
                )
        made: list[np.ndarray] = []
        for number, stage in enumerate(self.stages):
            parts = stage.denoiser.conditioner.conditions
            own = {name: value for name, value in conditions.items() if name in parts}
            if made:
                name = self.field_of(number)
                require(name not in own, name, "given", "it is what the stage before makes", "leave it out")
                own[name] = made[-1]
            for name, level in (levels or {}).items():
                if name in own:
                    own[name] = {"value": own[name], "level": level}
            rule: Any = guidance
            if scales:
                rule = {name: scale for name, scale in scales.items() if name in parts} or None
            made.append(stage(len(made[-1]) if made else n, seed=_seed(seed, number), guidance=rule, **own))
        return made

    def field_of(self, number: int) -> str:
        """The condition of a stage (from 1 on) that is what the stage before has made."""
        stage = self.stages[number]
        parts = stage.denoiser.conditioner.conditions
        found = [name for name in parts if inputs.image_of(parts[name], stage.image_shape) is not None]
        if self.field is not None and self.field in found:
            return self.field
        require(
            len(found) == 1, "cascade_field", self.field, f"the images of stage {number} are: "
            f"{', '.join(found) or 'none'}", "name the one that the stage before makes",
        )  # fmt: skip
        return found[0]


def consistency(made: Sequence[np.ndarray]) -> list[float]:
    """For each stage but the first: how far its images, reduced to the size of those before, are from these.

    The root mean square over all pixels, in levels of 0 to 255. A pixel is the mean of those that it stands for.
    """
    found = []
    for small, large in itertools.pairwise(made):
        size = small.shape[1:3]
        reduced = np.stack([pictures.resize(image, size, "area") for image in large])
        found.append(float(np.sqrt(np.mean(np.square(reduced.astype(np.float32) - small)))))
    return found


def _seed(seed: int, stage: int) -> int:
    """Of each stage another: the noise of images of several sizes from one key has numbers in common."""
    return seed if stage == 0 else int(np.random.SeedSequence((seed, stage)).generate_state(1)[0])
