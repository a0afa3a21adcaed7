"""Every config in configs/ builds, survives JSON, is the published model, and fits together in shape on a mesh."""

import json
import pathlib
import runpy
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config as configs
from jaxdiff.cost.operations import count
from jaxdiff.data import images
from jaxdiff.data.sources import Tfds
from jaxdiff.distributed import partitioning
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import UserError
from jaxdiff.generation.compiled import GenerationInputs, StaticArgs, Trees, generate
from jaxdiff.tasks.autoencoding import AutoencodingTask
from jaxdiff.tasks.protocols import Sampleable
from jaxdiff.training import step as training_step
from jaxdiff.training.state import abstract_state
from tests.selection import some

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
OF_WEIGHTS = {"diffusers"}  # their variants are folders: see tests/test_convert.py
FILES = sorted({path.stem for path in FOLDER.glob("*.py")} - OF_WEIGHTS)


def load(name):
    file, _, variant = name.partition(":")
    return configs.load(f"{FOLDER / file}.py" + (f":{variant}" if variant else ""))


def variants(file):
    return list(runpy.run_path(str(FOLDER / f"{file}.py")).get("VARIANTS", [""]))


ALL = [f"{file}:{variant}".rstrip(":") for file in FILES for variant in variants(file)]

# Large networks are slow to trace: by default a few of each kind are counted, and fewer trained and sampled from.
COUNTED = ("ddpm:cifar10", "edm:cifar10", "edm2:xxs")
TRACED = ("digits",)


# Millions of parameters and billions of multiply-adds of a forward pass, to the digits that are published.
PUBLISHED = {
    "ddpm:cifar10": ("35.75", 6.2),
    "edm:cifar10": ("55.74", 21.2),
    "edm:cifar10_ncsnpp": ("56.40", 21.2),
    "edm:ffhq64": ("61.81", 41.9),
    "edm:afhq64": ("61.81", 41.9),
    "edm:imagenet64": ("295.90", 109.7),
    "adm:imagenet64": ("295.90", 109.7),
    "adm:imagenet128": ("421.53", 306.9),
    "adm:imagenet256": ("553.84", 1119.8),
    "adm:imagenet256_uncond": ("552.81", 1119.8),
    "adm:imagenet512": ("559.00", 1982.0),
    "adm:upsample256": ("311.80", 631.6),
    "adm:upsample512": ("309", None),
    "palette:colorize": ("552.82", 1120.0),
    "palette:multi": ("552.82", 1120.0),
}
# EDM2's are published for latents of 64 x 64 x 4.
LATENT = {
    "edm2:xxs": ("31.3", 11.3),
    "edm2:xs": ("124.7", 45.0),
    "edm2:s": ("280.2", 101.0),
    "edm2:m": ("497.8", 179.0),
    "edm2:l": ("777.5", 279.0),
    "edm2:xl": ("1119.3", 402.0),
    "edm2:xxl": ("1523.2", 547.0),
}


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", ALL)
def test_config_builds_and_survives_json(name):
    config = load(name)
    stored = configs.from_json(configs.to_json(config))
    assert configs.build(config) == configs.build(stored, packages=("jaxdiff",))
    assert not configs.differences(json.loads(configs.to_json(config)), config)


@pytest.mark.parametrize("file", [file for file in FILES if variants(file) != [""]])
def test_an_unknown_variant_is_an_error_that_lists_the_variants(file):
    with pytest.raises(UserError, match=r"variant='nonsense': expected one of .* Fix: ") as error:
        load(f"{file}:nonsense")
    assert f"expected one of {', '.join(variants(file))}, got" in str(error.value)


@pytest.mark.slow
def test_loading_reads_no_data():
    files = [f"{FOLDER / name.partition(':')[0]}.py:{name.partition(':')[2]}".rstrip(":") for name in ALL]
    code = (
        "import sys; from jaxdiff import config\n"
        f"for file in {files!r}: config.build(config.load(file))\n"
        "assert not {'grain', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    # No folder of data sets can be read or created.
    nowhere = {"TFDS_DATA_DIR": "/dev/null", "HOME": "/dev/null"}
    subprocess.run([sys.executable, "-c", code], check=True, env=nowhere)


def abstract(experiment):
    """The shapes of parameters, of a batch of one and of its conditions."""
    task = experiment.task
    params = nn.meta.unbox(jax.eval_shape(lambda: task.init(jax.random.key(0))))
    x, t = jnp.zeros((1, *task.image_shape)), jnp.full((1,), 0.5)
    conditioner = task.denoiser.conditioner
    return params, *jax.eval_shape(
        lambda: (x, t, conditioner.example(1, task.image_shape), conditioner.none_dropped(1))
    )


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def check_published(experiment, parameters, operations):
    params, *arguments = abstract(experiment)
    digits = len(parameters.partition(".")[2])
    assert f"{size(params) / 1e6:.{digits}f}" == parameters
    if operations is not None:
        denoiser = experiment.task.denoiser
        run = jax.make_jaxpr(lambda params, *given: denoiser.apply({"params": params}, *given, train=False))
        np.testing.assert_allclose(count(run(params, *arguments)).total / 1e9, operations, rtol=0.01)
    return size(params)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", some(PUBLISHED, COUNTED))
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    check_published(configs.build(load(name)), *PUBLISHED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", some(LATENT, COUNTED))
def test_edm2_is_the_published_network_with_one_channel_less(name):
    pixels = load(name)
    latents = configs.from_json(configs.to_json(pixels))
    latents.task.image_shape, latents.task.denoiser.network.out_channels = (64, 64, 4), 4
    published = check_published(configs.build(latents), *LATENT[name])
    # One channel less into the first convolution and out of the last, both of 3 x 3.
    width = pixels.task.denoiser.network.levels[0].width
    assert size(abstract(configs.build(pixels))[0]) == published - 2 * 9 * width


@pytest.mark.parametrize("variant", variants("palette"))
def test_palette_is_adm_without_classes(variant):
    palette, adm = load(f"palette:{variant}").task.denoiser, load("adm:imagenet256_uncond").task.denoiser
    changed = configs.differences(adm.network, palette.network)
    assert changed == {"out_channels": (6, 3)}
    assert palette.conditioner.conditions.source.channels == 3


def test_palette_is_the_papers_network_plus_alpha_and_the_task():
    """That has three channels more than ADM's, and three out: 552.81 M. Alpha is one more, of 3 x 3 weights."""
    params = abstract(configs.build(load("palette:multi")))[0]
    task = size(params["conditioner"]["parts_task"])
    assert (size(params["network"]["stem"]), task) == ((9 * 7 + 1) * 256, 4 * 1024)
    assert f"{(size(params) - task - 9 * 256) / 1e6:.2f}" == "552.81"


@pytest.mark.parametrize("variant", variants("palette"))
def test_palettes_data_have_the_fields_of_its_conditions(variant):
    """All fields are computed from the image; known pixels equal the image."""
    config = load(f"palette:{variant}")
    config.data.source = configs.spec(Tfds, name="photos/64", label_key=None)
    experiment = configs.build(config)
    batch = next(experiment.data.epoch(8))
    conditioner = experiment.task.denoiser.conditioner
    conditioner.check({name: batch[name] for name in conditioner.conditions})
    known = batch["source"][..., 3] > 0
    np.testing.assert_array_equal(batch["source"][known][:, :3], images.to_float(batch["image"])[known])
    fraction = known.mean(axis=(1, 2))
    by_task = {"colorize": (0, 0), "inpaint": (0.3, 0.99), "uncrop": (0.4, 0.6), "jpeg": (0, 0)}
    tasks = [list(by_task)[task] for task in batch["task"]] if variant == "multi" else [variant] * 8
    assert all(by_task[task][0] <= one <= by_task[task][1] for task, one in zip(tasks, fraction, strict=True))
    assert len(set(tasks)) == (4 if variant == "multi" else 1)


@pytest.mark.parametrize("name", ["adm:upsample256", "imagen:sr256", "imagen:sr1024", "sr3:16_to_128"])
def test_upsamplers_compute_their_condition_from_the_image(name):
    config = load(name)
    config.data.source = configs.spec(Tfds, name="photos/64", label_key=None)
    experiment = configs.build(config)
    example = experiment.data.example()
    part = experiment.task.denoiser.conditioner.conditions["low_res"]
    expected = jax.tree.leaves(part.example(1, (64, 64, 3)))
    assert example["low_res"].shape in [leaf.shape[1:] for leaf in expected]


# Parameters in billions, to the digits that the paper gives, and CLIP's two towers as they are published.
DALLE2 = {
    "prior": (1.2, "1"),
    "decoder": (3.5, "3.5"),
    "upsample256": (0.7, "0.7"),
    "upsample1024": (0.3, "0.3"),
}


@pytest.mark.parametrize("variant", some(DALLE2, ("prior",)))
def test_dalle2_has_the_papers_sizes(variant):
    rounded, paper = DALLE2[variant]
    task = configs.build(load(f"dalle2:{variant}")).task.for_shapes()
    params = nn.meta.unbox(jax.eval_shape(lambda: task.init(jax.random.key(0))))
    digits = len(paper.partition(".")[2])
    assert f"{size(params) / 1e9:.{digits}f}" == paper
    assert f"{size(params) / 1e9:.1f}" == str(rounded)
    header = (FOLDER / "dalle2.py").read_text().partition("from ml_collections")[0]
    assert f"{size(params):,}" in header


def test_dalle2s_clip_is_vit_h():
    task = configs.build(load("dalle2:clip")).task
    params = nn.meta.unbox(jax.eval_shape(lambda: task.init(jax.random.key(0))))
    # OpenCLIP's ViT-H/14 has 632.08 M for images of 224 pixels; patches of 16 have 180 pixels more.
    image = 632_076_800 + (16 * 16 - 14 * 14) * 3 * 1280
    assert (size(params["image"]), size(params["text"])) == (image, 354_032_640)


# Heads of the widest attention and epsilon of the norms: published weights need both, and counts show neither.
UNCOUNTED = {
    "ddpm:cifar10": (1, 1e-6),
    "edm:cifar10": (1, 1e-6),
    "edm:cifar10_ncsnpp": (1, 1e-6),
    "edm:imagenet64": (12, 1e-5),
    "adm:imagenet64": (12, 1e-5),
    "adm:imagenet128": (4, 1e-5),
    "adm:imagenet256": (16, 1e-5),
    "adm:upsample256": (4, 1e-5),
    "adm:upsample512": (12, 1e-5),
}


@pytest.mark.parametrize("name", UNCOUNTED)
def test_heads_and_norms_are_the_published_ones(name):
    network = configs.build(load(name)).task.denoiser.network
    width = max(level.width for level in network.levels if level.attention)
    attention = network.middle.attention
    assert all(level.attention in (None, attention) for level in network.levels)
    heads = attention.heads or width // attention.head_dim
    assert (heads, network.block.eps) == UNCOUNTED[name]


# Calls of the network for an image, and millions of images seen in training.
RUNS = {
    "ddpm:cifar10": (1000, 102.4),
    "edm:cifar10": (35, 200),
    "edm:ffhq64": (79, 200),
    "edm:imagenet64": (511, 2500),
    "edm2:s": (63, 1024 * 1.048576),
    "edm2:m": (63, 2048 * 1.048576),
    "edm2:xl": (63, 640 * 1.048576),
    "adm:imagenet64": (250, None),
}


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", RUNS)
def test_runs_have_the_published_length(name):
    experiment, (calls, images) = configs.build(load(name)), RUNS[name]
    assert experiment.sampling.calls(experiment.task.denoiser.process) == calls
    if images is not None:
        assert abs(experiment.steps * experiment.batch_size - images * 1e6) <= experiment.batch_size


def without_files(config):
    """The config of an autoencoder without LPIPS, whose files are the user's own."""
    if config.task.get("perceptual") is not None:
        config.task.perceptual = None
    return config


def placed(shapes, mesh):
    """Shapes with the shardings of frozen networks."""
    shardings = partitioning.shardings(shapes, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


class Traced:
    """The training step of a config on a mesh of 2 x 2 x 2 devices, traced from shapes.

    Attributes:
      task, networks, mesh: the task without its files, shapes of its frozen networks, and the mesh.
      state: shapes of the training state, with shardings.
      fields: shapes of the fields of a batch of `rows`.
      step: the traced step.
    """

    rows = 16

    def __init__(self, experiment):
        self.sampled = isinstance(experiment.task, Sampleable)
        task = self.task = experiment.task.for_shapes() if self.sampled else experiment.task
        self.networks = task.frozen_shapes() if self.sampled else {}
        self.mesh = MeshShape(data=2, fsdp=2, tensor=2).make()
        optimizer = experiment.optimizer.make(experiment.steps)
        self.state = abstract_state(task, optimizer, self.mesh, experiment.ema.count)
        self.fields = self._fields()
        image = jax.ShapeDtypeStruct((self.rows, *task.image_shape), jnp.uint8)
        batch = {**self.fields, task.data_field if self.sampled else task.image_field: image}
        step = training_step.make_train_step(task, optimizer, experiment.ema, 0, experiment.accumulation)
        frozen = training_step.Frozen(placed(self.networks, self.mesh))
        jitted = training_step.jit_train_step(step, self.state, self.mesh, frozen)
        self.step = jitted.trace(self.state, batch, frozen)

    def _fields(self):
        task, rows = self.task, self.rows
        if self.sampled:
            return jax.eval_shape(lambda: task.denoiser.conditioner.stored_example(rows, task.data_shape))
        if isinstance(task, AutoencodingTask):
            return {}
        return {task.text_field: jax.ShapeDtypeStruct((rows, task.tokenizer.length), jnp.int32)}


@pytest.mark.slow
def test_the_step_of_stable_diffusion_compiles_for_eight_devices():
    """XLA splits the computation; parameters, averages and moments lie on each device as a quarter of the whole."""
    traced = Traced(configs.build(load("stable_diffusion:sd15")))
    compiled = traced.step.lower().compile(compiler_options={"xla_backend_optimization_level": 0})
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(traced.state))
    memory = compiled.memory_analysis()
    assert whole > 13e9
    assert memory.output_size_in_bytes == pytest.approx(whole / 4, rel=0.01)
    assert memory.alias_size_in_bytes == pytest.approx(memory.output_size_in_bytes, rel=1e-3)  # is donated


@pytest.mark.slow
@pytest.mark.parametrize("name", some(ALL, TRACED))
def test_config_fits_together_in_shape_on_a_mesh(name):
    experiment = configs.build(without_files(load(name)))
    traced = Traced(experiment)
    task, state, networks, rows = traced.task, traced.state, traced.networks, traced.rows
    for leaf in jax.tree.leaves(state):
        leaf.sharding.shard_shape(leaf.shape)  # raises unless it divides
    large = [
        leaf for leaf in jax.tree.leaves(state.params) if leaf.size >= partitioning.FSDP_FLOOR
    ]  # factors of LoRA are small
    split = [leaf for leaf in large if not leaf.sharding.is_fully_replicated]
    assert sum(leaf.size for leaf in split) >= 0.8 * sum(leaf.size for leaf in large)
    after, metrics = traced.step.out_info
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()
    if not traced.sampled:
        return

    fields = traced.fields
    absent = {name: jax.ShapeDtypeStruct((rows,), bool) for name in fields}
    program = StaticArgs((task.denoiser,), task.codec, task.data_shape, traced.mesh)
    index, seed = jax.ShapeDtypeStruct((rows,), jnp.uint32), jax.ShapeDtypeStruct((), jnp.uint32)
    params, codec = (
        jax.eval_shape(task.full_params, state.params, networks),
        {name: networks[name] for name in task.codec.frozen},
    )
    drawn = GenerationInputs(fields, absent, fields, absent)
    sampling = jax.jit(generate, static_argnums=(0, 1))
    made = sampling.trace(program, experiment.sampling, Trees((params,), codec), drawn, index, seed).out_info
    embeddings = len(task.data_shape) == 1
    shape = task.data_shape if embeddings else task.image_shape
    assert (made.shape, made.dtype) == ((rows, *shape), jnp.float32)


@pytest.mark.parametrize(
    ("field", "value"),
    [("log_every", 0), ("steps", 0), ("keep", -1), ("accumulation", 0), ("sample_every", -1), ("seed", -1)],
)
def test_a_number_out_of_range_is_named(field, value):
    config = load("digits")
    config[field] = value
    with pytest.raises(UserError, match=rf"config\.{field}={value}: .* Fix: "):
        configs.build(config)
