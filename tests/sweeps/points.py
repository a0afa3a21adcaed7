"""Settings with figures made by hand."""

from jaxdiff.sweeps.measures import Figure, Point
from jaxdiff.sweeps.settings import Setting


def a_point(guidance, quality, diversity, *, n=1000, m=297, seconds=0.001, nfe=8, **setting):
    """A setting with an accuracy of n samples and a recall of m real images."""
    figures = Figure(quality, n), Figure(diversity, m)
    return Point(Setting(guidance, 8, "ddim", **setting), *figures, nfe, seconds)
