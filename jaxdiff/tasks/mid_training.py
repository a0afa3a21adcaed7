"""Consistency mid-training: a regression on the teacher's sampling trajectories, before or in place of consistency.

Neighbouring points of a trajectory are compared in consistency training, so what is wrong at a low noise level spreads
to the higher ones. Here every point is compared with the end, which the teacher's sampler has computed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import between, expect, positive
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.time_sampling import TimeSampler
from jaxdiff.sampling.grids.continuous import Karras, falling
from jaxdiff.sampling.protocols import Denoise, Grid, Sampler, SamplerState, adds_noise, spans
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.tasks.consistency_models import LARGEST, TEACHER, check_guided
from jaxdiff.tasks.distances import Distance, PseudoHuber
from jaxdiff.tasks.objectives import LossInputs, Model, Objective
from jaxdiff.typing import Array, Data, Float, Key, Metrics, Weights


class Trajectory(NamedTuple):
    """The path of a deterministic sampler.

    Attributes:
      times: [steps], decreasing.
      points: noisy data at each time, [steps, batch, ...].
      end: the clean data that the path leads to, [batch, ...].
    """

    times: Float[Array, "steps"]
    points: Float[Array, "steps batch *data"]
    end: Data


@dataclasses.dataclass(frozen=True)
class MidTraining(Objective):
    """Consistency mid-training, "CMT" (Hu et al. 2025): the end of the teacher's trajectory, from any point of it.

    ``distance(f(x_t, t) - end)``, where x_t is a point of the trajectory that the teacher's sampler takes from the
    noise of the example. The times are those of the grid, so the task's time sampler is not used. An example whose
    conditions are dropped follows the unconditional trajectory. Start from the teacher's parameters (`init_from`).

    Attributes:
      teacher: the weights of a trained denoiser of the same architecture.
      guidance: the scale of classifier-free guidance of the teacher.
      sampler, grid, steps: how the teacher is sampled; the sampler adds no noise.
      pairs: points of each trajectory that a training step learns from. A trajectory needs `steps` calls of the
        teacher, or twice as many with guidance.
      distance: the size of the difference.
    """

    teacher: Weights
    guidance: float = 1.0
    sampler: Sampler = DpmSolver2M()
    grid: Grid = Karras()
    steps: int = 16
    pairs: int = 4
    distance: Distance = PseudoHuber()

    def __post_init__(self):
        between(self, "guidance", 0.0, LARGEST, open_low=True)
        positive(self, "steps", "pairs")
        found = type(self.sampler).__name__
        deterministic = not adds_noise(self.sampler) and not spans(self.sampler)
        expect(deterministic, "sampler", found, "a sampler of trajectories, without noise", "use DpmSolver2M")

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return {TEACHER: self.teacher}

    def draw(self, key: Key[Array, ""], batch: int) -> Mapping[str, Array]:
        return {"points": jax.random.randint(key, (batch, self.pairs), 0, self.steps)}

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        model, path = inputs.model, self.trajectory(inputs)
        assert model is not None  # the task sets it
        rows = jnp.arange(len(path.end))

        def difference(index: Array) -> Data:
            return model(path.points[index, rows], path.times[index]).x_0 - path.end

        differences = [difference(index) for index in inputs.drawn["points"].T]
        losses = jnp.mean(jnp.stack([*map(self.distance, differences)]), 0)
        return losses, {"difference": jnp.mean(jnp.square(jnp.stack(differences)))}

    def trajectory(self, inputs: LossInputs) -> Trajectory:
        """The teacher's trajectory from the noise of each example."""
        process = inputs.process
        times = falling(self.grid, process, self.steps).astype(inputs.noise.dtype)
        assert inputs.model is not None  # the task sets it
        call = self._teacher(inputs.model)
        keys = jax.random.split(jax.random.key(0), len(inputs.noise))  # not used: there is no noise

        def step(state: SamplerState, span: tuple[Array, Array]) -> tuple[SamplerState, Data]:
            return self.sampler.step(call, process, state, *span, keys), state.x

        first = self.sampler.init(inputs.noise * process.signal(times[0]).sigma)
        last, points = jax.lax.scan(step, first, (times[:-1], times[1:]))
        end, _ = call(last.x, times[-1], last.guidance)
        return Trajectory(times, jnp.concatenate([points, last.x[None]]), end.x_0)

    def _teacher(self, model: Model) -> Denoise:
        def call(x: Data, t: Array, state: Any) -> tuple[Prediction, Any]:
            return model.guided(TEACHER, x, jnp.full(len(x), t), self.guidance), state

        return call

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        if self.guidance != 1:
            check_guided(denoiser, "objective.guidance", self.guidance)
