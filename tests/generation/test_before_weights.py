"""What cannot be sampled is refused before weights are read: here the run's folder holds none."""

import pytest

from jaxdiff import config as configs
from jaxdiff import sample
from jaxdiff.config.overrides import override
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from tests import commands


@pytest.fixture
def run(tmp_path):
    """The folder of a run of digits with a discrete grid, without checkpoints."""
    config = configs.load(str(commands.DIGITS))
    override(config, "sampling.grid", "jaxdiff.sampling.grids.discrete:Trailing")
    (tmp_path / "config.json").write_text(configs.to_json(config))
    return str(tmp_path)


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sampling.steps", "1001"), "^steps=1001: expected at most the model's 1000, got 1001. Fix: "),
        (
            ("task.denoiser.network.dtype", "float16"),
            r"^task\.denoiser\.network\.dtype='float16': expected a type in which a CPU computes, got float16\. "
            r"Fix: --config\.task\.denoiser\.network\.dtype=bfloat16, or float32",
        ),
        (("sampling.steps", "1000"), "checkpoint"),
        (("task.denoiser.network.dtype", "bfloat16"), "checkpoint"),
    ],
)
def test_a_request_is_refused_before_weights_are_read(change, message, run):
    with pytest.raises(UserError, match=message):
        Generator.load(run, overrides=[change])


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--label=33", r"^--label=33: expected a class from 0 to 9"),
        ("--text=three", r"^--text='three': expected a model with a text"),
        ("--condition=size=3", "^--condition='size': expected a condition of the model"),
        ("--negative=size=3", "^--negative='size': expected a condition of the model"),
        ("--guidance=size=3", "^--guidance='size': expected a condition of the model"),
        ("--label=3 --level=label=0.1", r"^--level=0\.1: expected a condition with noise augmentation"),
        ("--label=3", "checkpoint"),
    ],
)
def test_a_condition_on_the_command_line_is_refused_before_weights_are_read(flags, message, run):
    with pytest.raises(UserError, match=message):
        sample.main([f"--workdir={run}", *flags.split()])
