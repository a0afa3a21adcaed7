"""Denoising loss of held-out images, against the closed form for a zero network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.embeddings import Embeddings
from jaxdiff.evaluation.denoising_loss import BATCH, LOG_SNRS, denoising_loss
from jaxdiff.evaluation.examples import InMemory
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.process.prediction import Edm
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.tasks.denoising import DenoisingTask

SIGMA_DATA = 0.5
DRAWN = []


class Drawn(Condition):
    """A condition that records when it is drawn."""

    @nn.compact
    def __call__(self, values, drop):
        return Embeddings(vector=jnp.broadcast_to(values[:, None], (values.shape[0], 16)))

    @nn.nowrap
    def draw(self, values, keys, train):
        DRAWN.append(train)
        return values

    @nn.nowrap
    def example(self, batch, data_shape=None):
        return jnp.zeros(batch)


@pytest.fixture(scope="module")
def task():
    denoiser = Denoiser(
        network=UNet((Level(8, blocks=0),), 3, middle=ResidualMiddle(None)),
        conditioner=Conditioner(NoiseLevel(16), {"drawn": Drawn()}),
        process=VarianceExploding(),
        parameterization=Edm(SIGMA_DATA),
    )
    return DenoisingTask(denoiser, LogNormalSigma(), (8, 8, 3))


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize(("count", "shape"), [(BATCH + 9, MeshShape(data=1)), (5, MeshShape(data=4, fsdp=2))])
def test_a_zero_network_has_the_error_of_its_skip(task, count, shape):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    params = nn.unbox(task.init(jax.random.key(0)))
    DRAWN.clear()
    examples = {"image": images, "drawn": np.zeros(count, np.float32)}
    mesh = shape.make(jax.devices()[: shape.data * shape.fsdp])
    found = denoising_loss(task, params, InMemory(examples), mesh)
    assert DRAWN == [False] or not DRAWN  # once for each program, if it is not compiled already
    sigma = np.exp(-np.asarray(LOG_SNRS) / 2)
    skip = SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2)
    power = np.mean((images / 127.5 - 1) ** 2)
    expected = (1 - skip) ** 2 * power + skip**2 * sigma**2
    np.testing.assert_allclose(found, expected, rtol=0.05)  # the noise is drawn: 960 numbers or more


class Counted(InMemory):
    """Examples that record which rows are read."""

    def rows(self, index):
        READ.extend(index.tolist())
        return super().rows(index)


READ = []


@pytest.mark.slow
def test_only_a_few_examples_are_read_and_they_are_spread_over_all(task):
    n = 1001
    images = np.zeros((n, 8, 8, 3), np.uint8)
    examples = Counted({"image": images, "drawn": np.zeros(n, np.float32)})
    READ.clear()
    denoising_loss(
        task, nn.unbox(task.init(jax.random.key(0))), examples, MeshShape(data=1).make(jax.devices()[:1])
    )
    assert len(set(READ)) == 256
    assert (min(READ), max(READ)) == (0, n - 1)
    assert np.diff(np.unique(READ)).max() <= 4
