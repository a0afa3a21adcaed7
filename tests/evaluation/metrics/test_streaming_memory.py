"""The FID of as many samples as papers use, in a process whose memory is measured."""

import json
import subprocess
import sys

import pytest

from tests import commands

PROGRAM = """
import json, resource, sys
import numpy as np
from jaxdiff.evaluation.metrics.fid import Fid
from jaxdiff.evaluation.metric import Batch

N, D, ROWS = 50_000, 2048, 500

class Normal:
    "Standard normal vectors instead of a network's: those of the batch whose number the first pixel gives."
    name = "Inception-v3 (FID)"

    def __call__(self, images):
        return np.random.default_rng(images.ravel()[0]).standard_normal((len(images), D), np.float32)

np.savez(sys.argv[1], mu=np.zeros(D), sigma=np.eye(D))
metric = Fid(Normal(), reference=sys.argv[1])
state = metric.init()
for number in range(N // ROWS):
    images, rows = np.full((ROWS, 1, 1, 1), number, np.uint8), np.arange(ROWS)
    state = metric.update(state, Batch("samples", images, {"image": images}, 0 * rows, ROWS * number + rows))
values = metric.compute(state)
print(json.dumps({**values, "kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


@pytest.mark.slow
def test_fifty_thousand_vectors_of_2048_numbers_need_less_than_two_gigabytes(tmp_path):
    """All vectors would be 410 MB in float32, and their products more.

    The expected value: the squared mean, d / n, and the sum of (1 - sqrt(l))^2 over the eigenvalues l, which follow the
    law of Marchenko and Pastur with ratio g = d / n. Its mean is g / 4 + g^2 / 32, up to g^3.
    """
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "reference.npz")]
    found = subprocess.run(
        words, env=commands.environment(1), cwd=commands.ROOT, check=True, capture_output=True, timeout=900
    )
    values = json.loads(found.stdout.splitlines()[-1])
    d, g = 2048, 2048 / 50_000
    assert values["fid_n"]["samples"] == 50_000
    assert values["fid"] == pytest.approx(g + d * (g / 4 + g**2 / 32), rel=2e-3)
    assert values["kilobytes"] < 2_000_000
