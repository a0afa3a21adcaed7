"""The sampling loop: one `lax.scan` over the steps of a sampler, from noise to data.

The denoiser is an argument: any function of noisy data and a time. The loop carries the sampler's history and the
state of the guidance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import UserError
from jaxdiff.process import transition
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.noise import fold_in, noise_like
from jaxdiff.sampling.protocols import (
    Denoise,
    DenoiseFn,
    GuidedDenoiser,
    SamplerState,
    Solver,
    TimePath,
    spans,
    stateless,
)
from jaxdiff.typing import Array, Data, Float, Int, Keys, Scalar

Observe = Callable[[Array, Data], None]
"""Of the number of a step and predicted clean data; see `sample`."""

Draws = Float[Array, "steps batch *data"]
"""Standard normal noise for each step."""

RENOISE = 2**31 - 2  # folded into the keys of a step, for the noise that takes the data up to where it begins


def sample(
    sampler: Solver,
    denoise: DenoiseFn | GuidedDenoiser,
    process: Process,
    times: Float[Array, "times"] | TimePath,
    x: Data,
    keys: Keys,
    max_orders: Int[Array, "steps"] | None = None,
    first_step: int = 0,
    observe: Observe | None = None,
    draws: Draws | None = None,
) -> Data:
    """Clean data from noisy data x at the first time: `integrate`, then the prediction of x_0 at the last time.

    Args:
      sampler, denoise, process: the method, the model, and its noise process.
      times: decreasing times, or steps that may return to noise.
      x: noisy data at the first time.
      keys: one per example.
      max_orders: bound on the order of each step, for multistep samplers.
      first_step: number of the first step, which with the keys determines its noise.
      observe: called with the number of a step, from 0 on, and the clean data that a call of the model predicts in it.
      draws: standard normal noise for each step, for a `Drawing` sampler; drawn from the keys if None.
    """
    denoise = stateless(denoise)
    state = _scan(sampler, denoise, process, times, x, keys, max_orders, first_step, observe, draws)
    last = ends(times)[1].astype(x.dtype)
    whole = _of_step(sampler, denoise, jnp.zeros_like(last))
    call = _observed(whole, observe, jnp.int32(len(as_path(times).start)))
    prediction, _ = call(state.x, last, state.guidance)
    return prediction.x_0


def integrate(
    sampler: Solver,
    denoise: DenoiseFn | GuidedDenoiser,
    process: Process,
    times: Float[Array, "times"] | TimePath,
    x: Data,
    keys: Keys,
    max_orders: Int[Array, "steps"] | None = None,
    first_step: int = 0,
    observe: Observe | None = None,
    draws: Draws | None = None,
) -> Data:
    """Noisy data at the last time from noisy data at the first; arguments as for `sample`."""
    guided = stateless(denoise)
    return _scan(sampler, guided, process, times, x, keys, max_orders, first_step, observe, draws).x


def as_path(times: Float[Array, "times"] | TimePath) -> TimePath:
    """The steps between consecutive times."""
    return times if isinstance(times, TimePath) else TimePath(times[:-1], times[1:])


def ends(times: Float[Array, "times"] | TimePath) -> tuple[Scalar, Scalar]:
    """The first and the last time."""
    return (times.start[0], times.end[-1]) if isinstance(times, TimePath) else (times[0], times[-1])


def _scan(
    sampler: Solver,
    denoise: GuidedDenoiser,
    process: Process,
    times: Float[Array, "times"] | TimePath,
    x: Data,
    keys: Keys,
    max_orders: Int[Array, "steps"] | None,
    first_step: int,
    observe: Observe | None,
    draws: Draws | None,
) -> SamplerState:
    """The state at the last time."""
    returns_to_noise = isinstance(times, TimePath)
    start, end = (value.astype(x.dtype) for value in as_path(times))
    origin = jnp.concatenate([start[:1], end[:-1]])  # the time of the data when a step begins

    def step(state: SamplerState, inputs: tuple) -> tuple[SamplerState, None]:
        index, t_origin, t, t_next, max_order, draw = inputs
        step_keys = fold_in(keys, index)
        if returns_to_noise:
            state = _renoise(sampler, process, state, t_origin, t, fold_in(step_keys, RENOISE))
        state = state._replace(max_order=max_order, draw=draw)
        call = _observed(_of_step(sampler, denoise, t_next), observe, index - first_step)
        after = sampler.step(call, process, state, t, t_next, step_keys)
        return after._replace(max_order=None, draw=None), None

    first = sampler.init(x)._replace(guidance=denoise.init(x))
    inputs = (first_step + jnp.arange(len(start)), origin, start, end, max_orders, draws)
    return jax.lax.scan(step, first, inputs)[0]


def _of_step(sampler: Solver, denoise: GuidedDenoiser, t_next: Scalar) -> GuidedDenoiser:
    """The denoiser of a step that ends at `t_next`: of flow maps its own, otherwise the one of all steps.

    Raises:
      UserError: a sampler of flow maps, and a denoiser that cannot be told the end of a step.
    """
    if not spans(sampler):
        return denoise
    if denoise.until is None:
        name = type(sampler).__name__
        raise UserError(
            f"sampling.sampler={name!r}: expected a denoiser that can be told where a step ends, got another. "
            "Fix: use a sampler such as Heun"
        )
    return denoise.until(t_next)


def _observed(denoise: GuidedDenoiser, observe: Observe | None, step: Array) -> Denoise:
    """The calls of a step, observed."""
    if observe is None:
        return denoise.call

    def call(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
        prediction, state = denoise.call(x, t, state)
        observe(step, prediction.x_0)
        return prediction, state

    return call


def _renoise(
    sampler: Solver, process: Process, state: SamplerState, s: Scalar, t: Scalar, keys: Keys
) -> SamplerState:
    """The data diffused from s up to t, with a fresh history; the state itself where t is s."""
    alpha, sigma = transition.forward(process, s, t)
    x = alpha * state.x + sigma * noise_like(keys, state.x)
    noisier: Any = state._replace(x=x, history=sampler.init(x).history)
    return jax.tree.map(lambda new, old: jnp.where(t > s, new, old), noisier, state)
