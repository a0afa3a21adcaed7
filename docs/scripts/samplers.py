"""Measure every sampler on data with an exact denoiser, and write the tables and the plot of docs/samplers.md.

pip install -e '.[test,docs]' && python docs/scripts/samplers.py
"""

import pathlib
import re
import sys

import jax
import numpy as np

DOCS = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(DOCS.parent))
jax.config.update("jax_enable_x64", True)

from jaxdiff.sampling.loop import integrate  # noqa: E402
from jaxdiff.sampling.samplers.adams import AdamsBashforth, Deis, Lms  # noqa: E402
from jaxdiff.sampling.samplers.adaptive import Rk45, RungeKutta4  # noqa: E402
from jaxdiff.sampling.samplers.ancestral import Ancestral  # noqa: E402
from jaxdiff.sampling.samplers.ddim import Ddim, EulerAncestral  # noqa: E402
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver1, DpmSolver2M, DpmSolver3M  # noqa: E402
from jaxdiff.sampling.samplers.dpm_solver_single import DpmSolver2, DpmSolver2S, DpmSolver3, DpmSolverSde  # noqa: E402
from jaxdiff.sampling.samplers.heun import Euler, Heun  # noqa: E402
from jaxdiff.sampling.samplers.pndm import Plms, Pndm  # noqa: E402
from jaxdiff.sampling.samplers.sa_solver import SaSolver  # noqa: E402
from jaxdiff.sampling.samplers.unipc import UniPc  # noqa: E402
from tests.oracles import Counting  # noqa: E402  (the path above)
from tests.sampling.affine import VP, relative_errors  # noqa: E402
from tests.sampling.solving import GRIDS, VE, denoiser, errors, orders, start, truth  # noqa: E402

BUDGETS = (5, 10, 20, 50)
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-6)

DETERMINISTIC = {
    # sampler: its theoretical order
    Ddim(): 1,
    Euler(): 1,
    DpmSolver1(integrand="noise"): 1,
    Heun(): 2,
    DpmSolver2(): 2,
    DpmSolver2S(): 2,
    DpmSolver3(): 3,
    DpmSolver2M(): 2,
    DpmSolver3M(): 3,
    DpmSolver3M(compat=True): 2,
    UniPc(order=1): 2,
    UniPc(order=2): 3,
    UniPc(order=3): 4,
    Deis(order=2): 2,
    Deis(order=3): 2,
    Deis(order=3, coordinate="t"): 2,
    AdamsBashforth(order=2): 2,
    AdamsBashforth(order=4): 2,
    Lms(order=4): 2,
    Pndm(): 2,
    Plms(): 2,
    SaSolver(tau=0.0): 4,
    RungeKutta4(): 4,
}

STOCHASTIC = {
    # sampler: (draws per step, eta of the SDE that it solves)
    Ancestral("small"): (1, 1.0),
    Ancestral("large"): (1, 1.0),
    EulerAncestral(): (1, 1.0),
    Ddim(0.5): (1, 0.25),
    DpmSolver1(eta=1.0): (1, 1.0),
    DpmSolver2M(eta=1.0): (1, 1.0),
    DpmSolver3M(eta=1.0): (1, 1.0),
    DpmSolver2(eta=1.0): (1, 1.0),
    DpmSolver2S(eta=1.0): (1, 1.0),
    DpmSolverSde(): (2, 1.0),
    SaSolver(): (1, 1.0),
}


def main() -> None:
    lines = [
        "| sampler | order stated | order measured (Karras, log-SNR grid) | calls | error at 5 calls | 10 | 20 | 50 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for sampler, order in DETERMINISTIC.items():
        measured = orders(sampler, 384 if order > 2 else 96)[:, 1]
        steps = [_steps(sampler, budget) for budget in BUDGETS]
        found = [errors(sampler, count)[0, 1] if count else None for count in steps]
        both = f"{measured[0]:.2f}, {measured[1]:.2f}"
        lines.append(_row(f"`{_name(sampler)}`", str(order), both, _calls(sampler), *map(_error, found)))
    table = "\n".join(lines)

    lines = ["| `Rk45` with rtol = atol | calls | error |", "|---|---|---|"]
    for tolerance in TOLERANCES:
        calls, error = _adaptive(tolerance)
        lines.append(_row(f"{tolerance:g}", str(calls), _error(error)))
    adaptive = "\n".join(lines)

    lines = [
        "| sampler | weak order measured | calls | error of the variance at 5 calls | 10 | 20 | 50 |",
        "|---|---|---|---|---|---|---|",
    ]
    for sampler, (draws, eta) in STOCHASTIC.items():
        few, many = (relative_errors(sampler, VP, count, draws, eta)[1] for count in (60, 120))
        found = [relative_errors(sampler, VP, _steps(sampler, budget), draws, eta)[1] for budget in BUDGETS]
        lines.append(
            _row(f"`{_name(sampler)}`", f"{np.log2(few / many):.2f}", _calls(sampler), *map(_error, found))
        )
    stochastic = "\n".join(lines)

    file = DOCS / "samplers.md"
    text = file.read_text()
    for name, block in (("deterministic", table), ("adaptive", adaptive), ("stochastic", stochastic)):
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda match, block=block: match[1] + block + "\n" + match[2],
            text, flags=re.DOTALL,
        )  # fmt: skip
    file.write_text(text)
    plot()


def plot() -> None:
    """Error against calls, for some of the deterministic samplers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [Ddim(), Heun(), DpmSolver2M(), DpmSolver3M(), DpmSolver3M(compat=True), UniPc(order=2), UniPc(order=3),
             Deis(order=3), Lms(order=4), Plms(), DpmSolver3(), RungeKutta4()]  # fmt: skip
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    styles = ("-", "--", ":")
    for i, sampler in enumerate(shown):
        calls = np.array([5, 7, 10, 14, 20, 28, 40, 56, 80, 112, 160])
        steps = [_steps(sampler, budget) for budget in calls]
        points = [(sampler.calls(n), errors(sampler, n)[0, 1]) for n in dict.fromkeys(steps) if n]
        axes.loglog(*zip(*points, strict=True), styles[i % 3], color=f"C{i % 10}", label=_name(sampler))
    axes.set_xlabel("function evaluations")
    axes.set_ylabel("error (root mean square)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    (DOCS / "images").mkdir(exist_ok=True)
    figure.savefig(DOCS / "images" / "samplers.png", dpi=120)


def _steps(sampler, budget: int) -> int:
    """The largest number of steps within a budget of calls."""
    return max((n for n in range(budget + 1) if n == 0 or sampler.calls(n) <= budget), default=0)


def _adaptive(tolerance: float) -> tuple[int, float]:
    """The number of calls, and the error on the mixture."""
    sampler, x = Rk45(rtol=tolerance, atol=tolerance), start()
    keys, times = jax.random.split(jax.random.key(0), len(x)), GRIDS[0](VE, 2)
    counting = Counting(denoiser(VE))
    with jax.disable_jit():
        found = integrate(sampler, counting, VE, times, x, keys)
    half = len(x) // 2
    return counting.calls, float(np.sqrt(np.mean((np.asarray(found) - truth())[half:] ** 2)))


def _name(sampler) -> str:
    """The class with its order and the fields that differ from their defaults."""
    default = type(sampler)()
    arguments = [
        f"{name}={value!r}"
        for name, value in vars(sampler).items()
        if name == "order" or value != getattr(default, name)
    ]
    return f"{type(sampler).__name__}({', '.join(arguments)})" if arguments else type(sampler).__name__


def _calls(sampler) -> str:
    """Calls per step, and additional calls of the first steps."""
    each = sampler.calls(21) - sampler.calls(20)
    extra = sampler.calls(20) - 20 * each
    return f"{each} per step" + (f", and {extra}" if extra else "")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    main()
