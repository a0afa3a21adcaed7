"""What guidance costs in diversity, and what acts against it, in words computed from the figures."""

import dataclasses
from collections.abc import Sequence

from jaxdiff.sweeps.measures import Figure, Point, differ, half_width, worse
from jaxdiff.sweeps.pareto import best_quality


@dataclasses.dataclass(frozen=True)
class Collapse:
    """The loss of diversity of the settings of a sweep.

    Attributes:
      points: the settings.
      real: diversity of real images, scored as samples are.
      quality, diversity: names of the two figures.
    """

    points: Sequence[Point]
    real: Figure
    quality: str
    diversity: str

    def answer(self) -> list[str]:
        """Sentences: the best setting, and the costs of guidance with its sampler and steps."""
        best = best_quality(self.points)
        family = [point for point in self.points if point.setting.family == best.setting.family]
        plain = sorted((p for p in family if not p.setting.measure), key=lambda p: p.setting.guidance or 0.0)
        return [self._best(best), *(self._cost(point, family) for point in plain), self._errors()]

    def _best(self, best: Point) -> str:
        share = f", {_percent(best.diversity.value / self.real.value)} of real" if self.real.value else ""
        return (
            f"Best: {best.setting}: {self.quality} {best.quality.value:.3f}, "
            f"{self.diversity} {best.diversity.value:.3f}{share}."
        )

    def _cost(self, point: Point, family: Sequence[Point]) -> str:
        """What guidance alone costs, and what the best measure against it gives."""
        of_real = f"{self.diversity} {point.diversity.value:.3f} of real {self.real.value:.3f}"
        name = (
            f"Guidance {point.setting.guidance:g}" if point.setting.guidance is not None else "The guidance"
        )
        apart = differ(point.diversity, self.real)
        if apart is None:
            return f"{name}: {of_real}. Its sampling error is unknown, so this claims no difference."
        if not apart:
            width = half_width(point.diversity, self.real)
            error = "" if width is None else f" of ± {width:.3f}"
            return f"{name}: no loss of diversity beyond the sampling error{error} ({of_real})."
        if point.diversity.rank > self.real.rank:
            return f"{name} gives more diversity than real images have ({of_real})."
        cost = _percent(1 - point.diversity.value / self.real.value)
        says = f"{name} costs {cost} of the diversity"
        if point.setting.guidance == 1:
            says = f"Without guidance, {cost} of the diversity of real images is missing"
        return f"{says} ({of_real}){self._against(point, family)}."

    def _against(self, point: Point, family: Sequence[Point]) -> str:
        """The best measure at the same scale: the most diverse one whose quality is no worse, else any."""
        tried = [p for p in family if p.setting.measure and p.setting.guidance == point.setting.guidance]
        if not tried:
            return ""
        helps = [
            p for p in tried if worse(point.diversity, p.diversity) and differ(point.diversity, p.diversity)
        ]
        if not helps:
            return (
                f"; nothing tried against it (settings: {len(tried)}) changes that beyond the sampling error"
            )
        free = [p for p in helps if not worse(p.quality, point.quality)]
        if free:
            best = max(free, key=lambda p: p.diversity.rank)
            return f"; with {best.setting.measure} it costs {self._left(best)} at {self._same(best, point)}"
        best = max(helps, key=lambda p: p.quality.rank)
        change = f"{self.quality} {best.quality.value:.3f} instead of {point.quality.value:.3f}"
        return f"; with {best.setting.measure} it costs {self._left(best)}, at {change}"

    def _left(self, point: Point) -> str:
        """The cost with a measure."""
        if not differ(point.diversity, self.real):
            return f"nothing beyond the sampling error ({self.diversity} {point.diversity.value:.3f})"
        cost = 1 - point.diversity.value / self.real.value
        return f"{_percent(cost)} ({self.diversity} {point.diversity.value:.3f})"

    def _same(self, point: Point, other: Point) -> str:
        better = worse(other.quality, point.quality)
        kind = f"a better {self.quality}" if better else f"the same {self.quality} within the error"
        return f"{kind} ({point.quality.value:.3f} and {other.quality.value:.3f})"

    def _errors(self) -> str:
        counted = sorted({f.n for p in self.points for f in (p.quality, p.diversity) if f.n is not None})
        if not counted:
            return "No sampling error of these figures is known; differences are not claimed."
        images = " and ".join(map(str, counted))
        return (
            f"Errors are 95 % intervals of the difference of two fractions (Agresti & Caffo 2000) of {images} images. "
            "They hold for these samples: another --seed shows how much the samples matter, and whether the best of "
            f"{len(self.points)} settings is more than luck."
        )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
