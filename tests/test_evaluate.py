"""Every config is evaluated by its own evaluation: a tiny random network, from data to report."""

import json
import pathlib

import flax.linen as nn
import jax
import pytest

from jaxdiff import config as configs
from jaxdiff.config.overrides import override
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.evaluate import evaluate
from jaxdiff.generation.generator import Generator
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
TINY = (
    ("task.denoiser.network.middle.attention", "none"),
    ("task.denoiser.conditioner.noise.width", "16"),
    ("sampling.steps", "2"),
)
FEW = {"digits_cascade": "[:250]", "scenes_text": "[:400]"}
"""Part of the splits that is read; of photos the first 64."""

OWN = {
    "scenes_text": (
        ("task.denoiser.conditioner.conditions.text.vector_width", "16"),
        ("task.denoiser.conditioner.conditions.text.encoder.layers", "1"),
        ("evaluation.n", "12"),
    ),
    "photos_sr": (
        ("task.denoiser.conditioner.conditions.low_res.noise.width", "16"),
        ("evaluation.n", "6"),
        ("evaluation.features", "jaxdiff.evaluation.features.patches:Patches(size=4)"),
    ),
    "photos_palette": (
        ("task.denoiser.conditioner.conditions.task.width", "16"),
        ("evaluation.n", "12"),
        ("evaluation.features", "jaxdiff.evaluation.features.patches:Patches(size=4)"),
    ),
    "digits_cascade:upsample": (
        ("task.denoiser.conditioner.conditions.label.width", "16"),
        ("task.denoiser.conditioner.conditions.low_res.noise.width", "16"),
        ("evaluation.n", "60"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    OWN,
)
def test_a_config_is_evaluated_by_its_own_evaluation(name, tmp_path):
    file, _, variant = name.partition(":")
    config = configs.load(f"{FOLDER / file}.py" + (f":{variant}" if variant else ""))
    levels = config.task.denoiser.network.levels
    tokens = configs.spec(PixelAttention, self_attention=False, cross_attention=True, head_dim=4)
    config.task.denoiser.network.levels = tuple(
        configs.spec(
            Level,
            width=4,
            blocks=0,
            attention=tokens if level.attention and level.attention.cross_attention else None,
        )
        for level in levels
    )
    for path, text in (*TINY, *OWN[name]):
        override(config, path, text)
    for data in (config.data, config.test_data):
        data.source.split += FEW.get(file, "[:64]")
    experiment = configs.build(config)
    mesh = MeshShape(data=1).make(jax.devices()[:1])
    experiment.check_data()
    params = nn.unbox(jax.jit(experiment.task.init)(jax.random.key(0)))
    report = evaluate(experiment, Generator.of(experiment, params, mesh), str(tmp_path))
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored == report.values
    assert (tmp_path / "evaluation.png").stat().st_size > 10_000
    assert "DpmSolver2M" in str(report)
    losses = stored["noise_losses"]
    assert losses["train"][0] == pytest.approx(losses["test"][0], rel=0.5)
