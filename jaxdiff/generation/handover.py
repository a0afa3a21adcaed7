"""Two models of one latent space in sequence: one from noise down to a noise level, the other from there to data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.errors import expect
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.steps import OnStep, part_of
from jaxdiff.interop.schedulers import handover


@dataclasses.dataclass(frozen=True, eq=False)
class Handover:
    """A model whose noisy latents another one completes, as SDXL's refiner does (Podell et al. 2023, section 2.5;
    Balaji et al. 2022, "eDiff-I")::

        images = Handover(Generator.load("runs/sdxl"), Generator.load("runs/refiner"))(text="a lighthouse")

    Each model keeps its own recipe, with as many steps: the first takes those above a time, the second those below.
    Conditions are shared by name.

    Attributes:
      first: the model that starts from noise.
      second: the model that continues, of the same latents.
      fraction: of the steps, counted from noise, that the first one takes: `denoising_end` of diffusers.
      last: number of the last steps, which the second one takes, in place of `fraction`; 1 for Karlo's
        super-resolution.
    """

    first: Generator
    second: Generator
    fraction: float = 0.8
    last: int | None = None

    def __post_init__(self):
        first, second = (model.data_shape[-1] for model in (self.first, self.second))
        fix = "use a base model and its refiner"
        expect(first == second, "second", second, f"latents of {first} channels, as those of the first", fix)
        scales, processes = (
            [getattr(part, name, None) for part in parts]
            for name, parts in (
                ("scaling_factor", (self.first.codec, self.second.codec)),
                ("process", (self.first.denoiser, self.second.denoiser)),
            )
        )
        expect(
            scales[0] == scales[1], "second", scales[1], f"latents scaled by {scales[0]}, as the first's", fix
        )
        same = processes[0] == processes[1]
        expect(same, "second", processes[1], "the noise process of the first", fix, "another one")
        steps = self.first.recipe.steps, self.second.recipe.steps
        expect(steps[0] == steps[1], "steps", steps, "as many steps of both models", "give one number")
        _ = self.time

    @property
    def time(self) -> float:
        """The time at which the second model continues."""
        if self.last is not None:
            starts, fix = self.first.starts, f"give more than {self.last}"
            expect(
                len(starts) > self.last, "steps", len(starts), f"more steps than the last {self.last}", fix
            )
            return float(starts[-self.last - 1])
        label: Any = self.first.denoiser.parameterization
        return handover(self.fraction, getattr(getattr(label, "label", None), "steps", 1000))

    def __call__(
        self,
        n: int | None = None,
        *,
        image_size: tuple[int, int] | None = None,
        noise: np.ndarray | None = None,
        draws: np.ndarray | None = None,
        negative: Mapping[str, Any] | None = None,
        on_step: OnStep | None = None,
        **options: Any,
    ) -> np.ndarray:
        """uint8 images [n, height, width, channels].

        Args:
          n, image_size, noise, draws, negative, **options: as for a `Generator`; each model takes its own conditions.
          on_step: as for a `Generator`; steps are those of both models together.

        Raises:
          UserError: as for a `Generator`, or a condition that neither model has.
        """
        height, width = image_size or self.first.image_shape[:2]
        first = _with(self.first.of_size(height, width), until=self.time)
        second = _with(self.second.of_size(height, width), below=self.time)
        own = _own(first, second, options, negative)
        observe: list[OnStep | None] = [None, None]
        if on_step is not None:
            conditions = {name: own[name] for name in first.denoiser.conditioner.conditions if name in own}
            number = first.number(n, noise, **conditions)
            before, after = first.observed_steps(number), second.observed_steps(number)
            observe = [part_of(on_step, done, before + after) for done in (0, before)]
        parts = [None, None] if draws is None else np.split(draws, [first.steps_with_noise])
        noisy = first(n, image_size=(height, width), noise=noise, draws=parts[0], on_step=observe[0], **own)
        given = _own(second, first, options, negative)
        later = None if parts[1] is None or len(parts[1]) == second.steps_with_noise == 0 else parts[1]
        return second(
            len(noisy), image_size=(height, width), noisy=noisy, draws=later, on_step=observe[1], **given
        )


def _with(model: Generator, **changes: Any) -> Generator:
    """The model with another recipe."""
    return dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, **changes))


def _own(
    model: Generator, other: Generator, options: Mapping[str, Any], negative: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The options without conditions that only the other model has."""
    names = other.denoiser.conditioner.conditions.keys() - model.denoiser.conditioner.conditions.keys()
    instead = {name: value for name, value in (negative or {}).items() if name not in names}
    return {name: value for name, value in options.items() if name not in names} | {
        "negative": instead or None
    }
