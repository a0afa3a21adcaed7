"""Published weights become a run that all commands open, and a run becomes a folder of diffusers."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config as configs
from jaxdiff import convert, sample, train
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = '''
from jaxdiff.config import load, spec
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds

def get_config(variant):
    """Any folder's network, on the digits."""
    config = load("{root}/configs/diffusers.py:" + variant)
    config.data = spec(Pipeline, source=spec(Tfds, name="digits", split="train", label_key=None))
    config.steps, config.batch_size, config.sample_every = 2, 8, 0
    config.sampling.steps = 2
    return config
'''


@functools.cache
def peer():
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        value.data = value.data + 0.05 * torch.randn(value.shape, generator=generator)
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    pipeline = tmp_path / "pipeline"
    peer().save_pretrained(pipeline / "unet")
    diffusers.DDPMScheduler().save_pretrained(pipeline / "scheduler")
    (tmp_path / "config.py").write_text(CONFIG.format(root=ROOT))
    return pipeline


def into(folder, *more):
    workdir = folder.parent / "run"
    config = f"{folder.parent}/config.py:{folder}"
    convert.main(["--from", str(folder), "--config", config, "--workdir", str(workdir), *more])
    return workdir


@pytest.mark.slow
def test_converted_weights_can_be_trained_sampled_and_converted_back(folder, capsys):
    workdir = into(folder)
    assert "parameters of" in capsys.readouterr().out
    generator = Generator.load(str(workdir))
    x, steps = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32), np.array([3, 700])
    with torch.no_grad():
        expected = peer()(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(steps)).sample.numpy()
    t = (jnp.asarray(steps, jnp.float32) + 1) / 1000
    apply = jax.jit(functools.partial(generator.denoiser.apply, train=False))
    found = apply({"params": generator.params}, jnp.asarray(x), t, {}, {})
    np.testing.assert_allclose(np.asarray(found).transpose(0, 3, 1, 2), expected, atol=2e-5)

    out = folder.parent / "out"
    convert.main(["--workdir", str(workdir), "--to", str(out)])
    again = diffusers.UNet2DModel.from_pretrained(out)
    for key, value in peer().state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key].numpy(), value.numpy())

    train.main(["--config", f"{folder.parent}/config.py:{folder}", "--workdir", str(workdir)])
    sample.main(["--workdir", str(workdir), "--n", "2", "--out", str(folder.parent / "grid.png")])
    after = Generator.load(str(workdir)).params["network"]["stem"]["kernel"]
    before = generator.params["network"]["stem"]["kernel"]
    assert 0 < np.abs(after - before).max() < 1e-3  # training started from the converted weights


def test_a_network_that_does_not_fit_writes_nothing(folder):
    config = configs.load(f"{folder.parent}/config.py:{folder}")
    config.task.denoiser.network.levels = tuple(
        {**level.to_dict(), "width": 2 * level.width} for level in config.task.denoiser.network.levels
    )
    with pytest.raises(
        UserError, match=r"that differ; nothing was loaded(?s:.*)conv_in.weight.*\(16, 1, 3, 3\)"
    ):
        convert.convert(str(folder), config, str(folder.parent / "run"))
    assert not (folder.parent / "run").exists()


@pytest.mark.slow
def test_a_workdir_with_checkpoints_is_not_changed(folder):
    into(folder)
    with pytest.raises(UserError, match="expected a folder without checkpoints"):
        into(folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either --from or --to"),
        (["--from", "x", "--to", "y"], "either --from or --to"),
        (["--from", "x"], "--workdir"),
        (["--from", "x", "--workdir", "w"], "--from=x: expected a file or folder"),
        (["--from", "nowhere.pt", "--workdir", "w", "--config", "configs/digits.py"], "nowhere.pt"),
        (["--from", "x", "--weights", "old"], "--weights"),
    ],
)
def test_invalid_flags_are_errors(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = [str(tmp_path / flag) if flag == "w" else flag for flag in flags]
    with pytest.raises(UserError, match=message):
        convert.main(flags)
    assert list(tmp_path.iterdir()) == []
