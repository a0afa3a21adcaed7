"""Pareto fronts, and the choice of one setting."""

from collections.abc import Callable, Mapping, Sequence

from jaxdiff.sweeps.measures import Point, worse


def front(pairs: Sequence[tuple[float, float]]) -> list[bool]:
    """For each pair, whether no other is at least as high in both numbers and higher in one. Equal pairs share it."""
    order = sorted(range(len(pairs)), key=lambda i: (-pairs[i][0], -pairs[i][1]))
    on_front, best, last = [False] * len(pairs), float("-inf"), None
    for i in order:
        if pairs[i][1] > best or pairs[i] == last:
            on_front[i], best, last = True, pairs[i][1], pairs[i]
    return on_front


TRADE_OFFS: Mapping[str, Callable[[Point], tuple[float, float]]] = {
    "quality-diversity": lambda point: (point.quality.rank, point.diversity.rank),
    "quality-NFE": lambda point: (point.quality.rank, -point.nfe),
    "quality-seconds": lambda point: (point.quality.rank, -point.seconds),
}
"""The trade-offs of a report: two numbers of a setting, higher is better."""


def best_quality(points: Sequence[Point]) -> Point:
    """The most diverse of the settings whose quality is the best, or within the error of the best."""
    top = max(points, key=lambda point: point.quality.rank)
    equal = [point for point in points if not worse(point.quality, top.quality)]
    return max(equal, key=lambda point: (point.diversity.rank, point.quality.rank, -point.seconds))


def best_diversity(points: Sequence[Point]) -> Point:
    """The setting of best quality among those whose diversity is the best, or within the error of the best."""
    top = max(points, key=lambda point: point.diversity.rank)
    equal = [point for point in points if not worse(point.diversity, top.diversity)]
    return max(equal, key=lambda point: (point.quality.rank, point.diversity.rank, -point.seconds))


def fastest(points: Sequence[Point]) -> Point:
    """The quickest of the settings that are, within the error, as good and as diverse as that of best quality."""
    top = best_quality(points)
    equal = [
        point
        for point in points
        if not worse(point.quality, top.quality) and not worse(point.diversity, top.diversity)
    ]
    return min(equal, key=lambda point: point.seconds)


CHOICES: Mapping[str, Callable[[Sequence[Point]], Point]] = {
    "best-quality": best_quality,
    "best-diversity": best_diversity,
    "fastest": fastest,
}
"""The choices of ``--apply``."""
