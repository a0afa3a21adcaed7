"""Staged runs: where a command needs a single model, it names a stage."""

import json

import pytest

from jaxdiff import config as configs
from jaxdiff import evaluate, posthoc_ema, train
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.predictor import Predictor
from jaxdiff.generation.stages import Stages
from jaxdiff.runs.stages import Stage, StagedRun, write_staged
from jaxdiff.runs.weights import RunWeights
from jaxdiff.sampling.samplers.ddim import Ddim
from tests.commands import DIGITS, TINY


@pytest.fixture
def staged(tmp_path):
    for name in ("prior", "decoder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(configs.to_json(configs.spec(Ddim)))
    stages = (
        Stage("prior", str(tmp_path / "prior"), gives="image"),
        Stage("decoder", str(tmp_path / "decoder")),
    )
    write_staged(StagedRun(stages), str(tmp_path / "all"))
    return str(tmp_path / "all")


def test_stages_are_of_one_image_encoder(staged, tmp_path):
    records = {"prior": "image_encoder", "decoder": "conditioner/parts_image/encoder"}
    for stage, network in records.items():
        record = {network: {"from": "a run", "sha256": f"{stage}'s"}}
        (tmp_path / stage / "frozen.json").write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"stages.decoder=.*expected the image encoder that prior was trained with"
    ):
        Stages.load(staged)


CALLS = {
    "evaluate": lambda run: evaluate.main(["--workdir", run]),
    "posthoc_ema": lambda run: posthoc_ema.main(["--workdir", run, "--std", "0.1", "--out", f"{run}/x"]),
    "train": lambda run: train.main(
        ["--config", DIGITS, *TINY, "--from-workdir", run, "--workdir", f"{run}/new"]
    ),
    "Generator": Generator.load,
    "Predictor": Predictor.load,
    "RunWeights": lambda run: RunWeights(run).read(),
}


@pytest.mark.spread(5)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_one_model_is_needed(staged, monkeypatch, call):
    monkeypatch.setattr(runtime, "start", lambda: None)
    with pytest.raises(UserError, match=r"expected a run of one model, got one of several stages \(prior, decoder\). "
                                        r"Fix: give the folder of a stage"):  # fmt: skip
        call(staged)
