"""ControlNets trained on a run: they start from the run's model, train a copy alone, continue, and are sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxdiff.cli import app
from jaxdiff.conditioning.control import ControlImage
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.config import build, spec
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.marks import Marks
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.models.control_net import Controlled, ControlNet
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.train import train
from jaxdiff.training import step
from jaxdiff.training.optimizer import Constant
from jaxdiff.training.transfer import InitFrom
from jaxdiff.trees import merge, paths
from tests.runs import fine_tuning
from tests.runs.digits import IMAGES, LABELS, SOURCE, config, sample

pytestmark = pytest.mark.slow

SKETCHES = np.stack([Marks()(image, np.random.default_rng(0)) for image in IMAGES[:3]])
CONTROL = "network/controls_sketch"


def with_control(found, base, network=None, **options):
    """The same experiment with a ControlNet, of which nothing else is trained."""
    denoiser = found.task.denoiser
    control = spec(ControlNet, network=network or denoiser.network, hint_widths=(8,), **options)
    denoiser.network = spec(Controlled, network=denoiser.network, controls={"sketch": control})
    denoiser.conditioner.conditions.sketch = spec(ControlImage, channels=1, control="sketch")
    found.optimizer.frozen, found.optimizer.schedule = ("*", f"!{CONTROL}"), spec(Constant)
    found.data.conditions = (spec(Degrade, field="sketch", degradation=spec(Marks)),)
    found.init_from = spec(InitFrom, workdir=str(base))
    return found


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "control"
    return folder, train(with_control(config(4), base[0]), str(folder), source=SOURCE)


def started(found):
    """The experiment and all its parameters at step 0."""
    experiment = build(found)
    mesh = experiment.mesh.make()
    state, untrained = fine_tuning.starting.first_state(experiment, mesh, {})
    return experiment, state, untrained, mesh


@pytest.fixture(scope="module")
def first(base):
    """A ControlNet with a noise embedding of its own, at step 0."""
    return started(with_control(config(4), base[0], noise=config(4).task.denoiser.conditioner.noise))


def test_at_step_0_samples_are_those_of_the_run_bit_for_bit(base, first):
    experiment, state, untrained, mesh = first
    generator = Generator.of(experiment, merge(state.params, untrained), mesh)
    expected = sample(base[1])
    assert np.std(expected) > 1
    np.testing.assert_array_equal(sample(generator, sketch=SKETCHES), expected)


def test_it_begins_as_a_copy_of_encoder_and_middle(base, first):
    state = first[1]
    copied = {path.removeprefix(f"{CONTROL}/"): array for path, array in paths(state.params).items()}
    own = [path for path in copied if path.startswith(("hint/", "zero_"))]
    before = paths(base[1].params)
    origins = {path: "conditioner" if path.startswith("noise") else "network" for path in copied.keys() - own}
    for path, part in origins.items():
        np.testing.assert_array_equal(copied[path], before[f"{part}/{path}"])
    found = {path.partition("/")[0] for path in origins}
    assert found == {"stem", "encoder_0_block_0", "middle_block_0", "middle_block_1", "noise"}
    assert all(not np.any(copied[path]) for path in own if path.startswith(("zero_", "hint/conv_out")))


def test_nothing_but_the_copy_is_trained_averaged_and_stored(base, tuned):
    folder, generator = tuned
    before, after = paths(base[1].params), paths(generator.params)
    for path, array in before.items():
        np.testing.assert_array_equal(after[path], array)
    added = after.keys() - before.keys()
    assert {path.rpartition("controls_sketch/")[0] for path in added} == {"network/"}
    with ocp.PyTreeCheckpointer() as reader:
        (found,) = (folder / "checkpoints" / "4").rglob("_METADATA")
        tree = reader.metadata(found.parent.resolve()).item_metadata.tree
    stored = [
        path for path in map(jax.tree_util.keystr, dict(jax.tree.leaves_with_path(tree))) if "kernel" in path
    ]
    assert {path.partition("'")[2].partition("'")[0] for path in stored} == {"params", "ema", "opt_state"}
    assert all("controls_sketch" in path for path in stored)
    assert np.any(sample(generator, sketch=SKETCHES) != sample(base[1]))
    assert np.any(sample(generator, sketch=SKETCHES) != sample(generator, sketch=SKETCHES[::-1]))


def test_without_scale_it_is_the_run_bit_for_bit(base, tuned):
    off = Generator.load(
        str(tuned[0]), overrides=[("task.denoiser.conditioner.conditions.sketch.scale", "0.0")]
    )
    np.testing.assert_array_equal(sample(off, sketch=SKETCHES), sample(base[1]))


def test_gradients_reach_the_copy_once_the_convolutions_of_zeros_have_moved(first):
    experiment, state, untrained, _ = first
    batch = {"image": jnp.asarray(IMAGES[:8]), "label": jnp.asarray(LABELS[:8]),
             "sketch": jnp.asarray(np.resize(SKETCHES, (8, 8, 8, 1)))}  # fmt: skip
    task = experiment.task
    examples = task.draw(batch, step.Context(), jax.random.key(0))

    @jax.jit
    def gradients(params):
        return jax.grad(
            lambda tree: jnp.mean(
                task.loss(merge(tree, untrained), step.Context(), examples, jax.random.key(1), True)[0]
            )
        )(params)

    def moved(params):
        found = {path: bool(np.any(array)) for path, array in paths(gradients(params)).items()}
        return {path.removeprefix(f"{CONTROL}/").partition("/")[0] for path, some in found.items() if some}

    zeros = {name for name in state.params["network"]["controls_sketch"] if name.startswith("zero_")}
    assert moved(state.params) == zeros
    after = jax.tree.map(lambda value, change: value - change, state.params, gradients(state.params))
    assert moved(after) == set(state.params["network"]["controls_sketch"])


def test_it_continues_exactly(base, tuned, tmp_path):
    for steps in (2, 4):
        train(with_control(config(steps), base[0]), str(tmp_path / "run"), source=SOURCE)
    again, loaded = (Generator.load(str(folder)) for folder in (tmp_path / "run", tuned[0]))
    expected = sample(tuned[1], sketch=SKETCHES)
    for generator in (again, loaded):
        np.testing.assert_array_equal(sample(generator, sketch=SKETCHES), expected)


def test_it_is_sampled_without_the_run_that_it_started_from(base, tuned):
    base[0].rename(base[0].with_name("elsewhere"))
    try:
        np.testing.assert_array_equal(
            sample(Generator.load(str(tuned[0])), sketch=SKETCHES), sample(tuned[1], sketch=SKETCHES)
        )
    finally:
        base[0].with_name("elsewhere").rename(base[0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("levels[0].width", "24", r"expected network/\S+ \[.*24.*\] in the other run, got \[.*16.*\]"),
        (
            "levels[0].blocks",
            "2",
            "expected a value in the other run for each parameter, got none for network/",
        ),
        (
            "coordinates",
            "False",
            r"expected network/\S*stem/kernel \[3, 3, 1, 16\] in the other run, got \[3, 3, 3, 16\]",
        ),
    ],
)
def test_a_run_of_another_architecture_is_refused(field, value, message, base):
    other = config(4)
    app.override(other, f"task.denoiser.network.{field}", value)
    with pytest.raises(UserError, match=message):
        started(with_control(other, base[0]))


def test_a_copy_of_another_architecture_is_refused(base):
    wider, other = config(4).task.denoiser.network, config(4).task.denoiser.network
    wider.levels[0].width, other.middle.attention = 24, spec(PixelAttention, head_dim=8)
    with pytest.raises(UserError, match=r"residuals.middle=\(8, 8, 24\): expected .* \(8, 8, 16\), got"):
        started(with_control(config(4), base[0], wider))
    with pytest.raises(UserError, match=f"got none for {CONTROL}/middle_block_0/self_attention/"):
        started(with_control(config(4), base[0], other))


def test_a_pattern_that_excludes_nothing_is_refused(base, tmp_path):
    wrong = with_control(config(4), base[0])
    wrong.optimizer.frozen = ("*", "!network/control_sketch")
    with pytest.raises(UserError, match=r"optimizer\.frozen='!network/control_sketch': expected a pattern"):
        train(wrong, str(tmp_path / "run"), source=SOURCE)


def test_a_copy_does_not_read_conditions_that_are_images(tmp_path):
    """Its stem has the weights of the image and of the coordinates alone."""
    found = fine_tuning.a_config(fine_tuning.MAP, task__denoiser__network__coordinates="True")
    _, _, ema = fine_tuning.store(found, tmp_path)
    new = fine_tuning.a_config(fine_tuning.MAP, task__denoiser__network__coordinates="True")
    _, state, _, _ = started(with_control(new, tmp_path))
    kernel = ema["network"]["stem"]["kernel"]
    assert kernel.shape[2] == 1 + 2 + 2
    np.testing.assert_array_equal(
        state.params["network"]["controls_sketch"]["stem"]["kernel"], kernel[:, :, [0, 3, 4]]
    )


def test_a_frozen_run_gets_channels_for_a_new_condition(base):
    """The stem alone is trained; its weights for the new channels, before the coordinates, are zeros at first."""
    new = config(4)
    new.task.denoiser.conditioner.conditions.map = spec(ImageCondition, channels=2)
    new.optimizer.frozen, new.init_from = ("*", "!network/stem"), spec(InitFrom, workdir=str(base[0]))
    _, state, untrained, _ = started(new)
    before, stem = base[1].params, state.params["network"]["stem"]
    assert [*paths(state.params)] == ["network/stem/bias", "network/stem/kernel"]
    np.testing.assert_array_equal(stem["kernel"][:, :, [0, 3, 4]], before["network"]["stem"]["kernel"])
    assert not np.any(stem["kernel"][:, :, 1:3])
    for path, array in paths(untrained).items():
        np.testing.assert_array_equal(array, paths(before)[path])
