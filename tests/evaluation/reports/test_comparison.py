"""Comparison of reports: values of both in one table, and each difference that makes them incomparable by name."""

import copy
import json
import re

import pytest

from jaxdiff import evaluate
from jaxdiff.cli import app
from jaxdiff.errors import UserError
from jaxdiff.evaluation.evaluation import Evaluation
from jaxdiff.evaluation.metrics.frechet import Frechet
from jaxdiff.evaluation.metrics.kid import Kid
from jaxdiff.evaluation.reports.comparison import check, compare, read
from tests.evaluation.models import Space, inputs

SETTINGS = {"sampler": "Heun()", "steps": 18, "nfe": 35, "dtype": "float32", "weights": "sha256:1"}


@pytest.fixture(scope="module")
def report(digits):
    (images, _), (held_out, _) = digits
    model = inputs(lambda *_: images[:50], (), {"image": images}, {"image": held_out}, settings=SETTINGS)
    metrics = (Frechet(Space()), Kid(Space(), subsets=3, subset_size=20))
    return json.loads(json.dumps(Evaluation(metrics, samples=50)(model).values))


def changed(report, **conditions):
    found = copy.deepcopy(report)
    for column in found["samples"]:
        column["conditions"] |= conditions
    return found


def test_a_report_states_how_its_values_were_made(report):
    stated = report["samples"][0]["conditions"]
    expected = {"n": 50, "seed": 0, "guidance": 1.0, "features": "a space", "profile": "adm-tf", "reference": "test",
                "features_hash": "sha256:0123456789abcdef", **SETTINGS}  # fmt: skip
    assert {name: stated[name] for name in expected} == expected
    assert stated["test"].startswith("sha256:")
    assert re.fullmatch(r"\d+\.\d+.*", stated["version"])
    assert report["samples"][0]["frechet_n"] == {"samples": 50, "reference": 297}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("profile", "clean-fid"), ("features", "another"), ("features_hash", "sha256:0"), ("reference", "train"),
        ("test", "sha256:0"), ("n", 49), ("quantization", "floor"), ("kid_subsets", "100 of 1000, seed 0"),
    ],
)  # fmt: skip
def test_what_changes_values_is_refused_by_name(report, name, value):
    for pair in ((report, changed(report, **{name: value})), (changed(report, **{name: value}), report)):
        with pytest.raises(UserError, match=rf"^{name}=.*expected the {name} of a.json, .* in b.json. Fix: "):
            compare(*pair, names=("a.json", "b.json"))


def test_models_and_samplers_may_differ_and_are_listed(report):
    other = changed(
        report, sampler="Ddim()", nfe=50, weights="sha256:2", seed=1, dtype="bfloat16", train="sha256:3"
    )
    other["samples"][0]["frechet"] = 12.5
    text = compare(report, other, ("a.json", "b.json"))
    for line in ("nfe: A 35, B 50", "weights: A 'sha256:1', B 'sha256:2'", "sampler: A 'Heun()', B 'Ddim()'"):
        assert line in text.splitlines()
    row = next(line for line in text.splitlines() if line.startswith("frechet "))
    assert row.split() == ["frechet", f"{report['samples'][0]['frechet']:.3g}", "12.5"]
    assert "kid.of_all" in text
    assert "steps" not in text


def test_a_metric_that_one_report_lacks_is_in_no_row(report):
    other = changed(report)
    for column in other["samples"]:
        del column["kid"], column["conditions"]["kid_subsets"]
    text = compare(report, other, ("a.json", "b.json"))
    assert "frechet" in text
    assert "kid" not in text


def test_training_data_must_agree_where_they_are_the_reference():
    check({"reference": "test", "train": 1}, {"reference": "test", "train": 2})
    with pytest.raises(UserError, match=r"^train=2"):
        check({"reference": "train", "train": 1}, {"reference": "train", "train": 2})


def test_the_command_prints_the_table_and_refuses_with_status_2(report, tmp_path, capsys):
    for name, values in (
        ("a", report),
        ("b", changed(report, seed=7)),
        ("c", changed(report, profile="clean-fid")),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps(values))
    places = {name: str(tmp_path / name) for name in "abc"}
    evaluate.main(["--compare", places["a"], f"{places['b']}/evaluation.json"])
    assert "seed: A 0, B 7" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        app.run(evaluate.main, ["--compare", places["a"], places["c"]])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: profile='clean-fid': expected the profile of ")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    columns = {
        "conditions": {"samples": [{"recall": 1.0}], "conditions": [1]},
        "column": {"samples": [{"recall": 1.0, "conditions": 5}]},
        "guidance": {"samples": [{"recall": 1.0, "guidance": "x"}]},
        "empty": {"samples": []},
    }
    for name, report in columns.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    for name, message in (
        *((name, "got another file") for name in columns),
        ("other", "got another file"),
        ("broken", "JSONDecodeError"),
        ("none", "no such file"),
    ):
        with pytest.raises(UserError, match=f"--compare=.*{name}.json.*{message}"):
            read(tmp_path / f"{name}.json")
