"""Pages of runs: they hold the run's numbers and images, need nothing from outside, and show no text as markup."""

import json
import re
import shutil

import pytest

from jaxdiff import config as configs
from jaxdiff.evaluation.plots.tables import lookup
from jaxdiff.reporting.page import page
from jaxdiff.reporting.run_files import read_runs
from jaxdiff.sweeps.records import Records
from tests.evaluation.models import Space
from tests.reporting import runs
from tests.reporting.reading import numbers, pictures, read, rows

HOSTILE = '</pre></style><script src="http://evil.example/x.js">alert("1")</script> & <b>\x00\ud800'


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return runs.complete(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def other(whole):
    change = "--config.optimizer.learning_rate=0.5"
    return runs.complete(whole.parent / "second", change, noise=9, settings={**runs.SETTINGS, "nfe": 8})


@pytest.fixture
def changed(whole, tmp_path):
    """A copy of the run to change."""
    return shutil.copytree(whole, tmp_path / "copy")


def page_of(*folders):
    return page(read_runs([str(folder) for folder in folders])).encode(errors="replace").decode()


def section(root, name):
    (found,) = [each for each in root.all("section") if each.attributes["id"] == name]
    return found


def test_the_page_needs_nothing_from_outside(whole):
    text = page_of(whole)
    root = read(text)
    for node in (
        each for name in ("img", "a", "link", "script", "svg", "use", "image") for each in root.all(name)
    ):
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert node.attributes.get(name, "#").startswith(("#", "data:"))
    assert not [
        each for name in ("script", "link", "iframe", "object", "base", "form") for each in root.all(name)
    ]
    (style,) = root.all("style")
    assert not re.search(r"url\(|@import|//", style.text)
    assert not re.search(r"\son\w+=", text)


def test_images_are_those_of_the_run(whole):
    found = pictures(read(page_of(whole)))
    files = [*sorted((whole / "samples").iterdir()), whole / "evaluation.png"]
    assert found == [file.read_bytes() for file in files]


def test_numbers_of_the_tables_are_those_of_the_report(whole):
    report = json.loads((whole / "evaluation.json").read_text())
    (table, *_) = section(read(page_of(whole)), "evaluation").of_class("values")
    columns = {"guidance 1 (n = 100)": report["samples"][0], "real (n = 100)": report["real"]}
    found = rows(table)
    expected = {"frechet", "kid.value", "kid.deviation", "precision", "recall", "density", "coverage",
                "clipped_density", "clipped_coverage"}  # fmt: skip
    assert expected <= set(found)
    intervals = 0
    for path, cells in found.items():
        assert set(cells) == set(columns)
        for name, cell in cells.items():
            value, *interval = numbers(cell)
            assert value == lookup(columns[name], path)
            assert cell.all("data")[0].text == f"{value:.4g}"
            stated = lookup(columns[name], f"precision_recall.intervals.{path}")
            stated = stated or (
                lookup(columns[name], "clipped.density_interval") if path == "clipped_density" else None
            )
            assert interval == (stated or [])
            intervals += bool(stated)
    assert intervals == 2 * 5
    assert found["frechet"]["guidance 1 (n = 100)"].text.endswith("n = 100 / 100")
    assert " n = " in found["recall"]["real (n = 100)"].text
    assert " n = " not in found["relative.recall"]["real (n = 100)"].text


def test_settings_of_the_values_are_stated(whole):
    (table,) = section(read(page_of(whole)), "evaluation").of_class("settings")
    conditions = json.loads((whole / "evaluation.json").read_text())["samples"][0]["conditions"]
    stated = {name: cells["guidance 1"].text for name, cells in rows(table).items()}
    for name in ("sampler", "nfe", "guidance", "profile", "features_hash", "weights", "test", "n", "version"):
        assert stated[name] == str(conditions[name])


def test_every_logged_number_has_a_chart(whole):
    titles = [each.attributes["aria-label"] for each in section(read(page_of(whole)), "training").all("svg")]
    assert {"loss", "images per second", "held out loss", "held-out loss by band of time, first", "evaluation: recall",
            "grad norm"} == set(titles)  # fmt: skip


def test_a_step_without_a_finite_loss_is_a_gap(whole):
    charts = section(read(page_of(whole)), "training").all("svg")
    (loss,) = [each for each in charts if each.attributes["aria-label"] == "loss"]
    (path,) = loss.all("path")
    assert (path.attributes["d"].count("M"), path.attributes["d"].count("L")) == (2, 0)


def test_the_sweep_has_its_answer_and_its_fronts(whole):
    part = section(read(page_of(whole)), "sweeps")
    (answer,) = part.of_class("answer")
    assert answer.text.startswith("Best: guidance 2, Heun, 8 steps: accuracy 0.990, recall 0.700")
    (table,) = part.of_class("values")
    fronts = {name: cells["Pareto fronts"].text for name, cells in rows(table).items()}
    dominated = "guidance 3, Ddim, 8 steps"
    assert fronts[dominated] == ""
    assert all("quality-diversity" in text for name, text in fronts.items() if name != dominated)
    found = [[numbers(cells["accuracy"])[0], numbers(cells["recall"])[0]] for cells in rows(table).values()]
    assert found == [[record["values"][name] for name in ("accuracy", "recall")] for record in runs.SWEPT]


def test_quality_over_the_ema_length_has_a_point_for_each_length(changed):
    titles = [each.attributes["aria-label"] for each in section(read(page_of(changed)), "sweeps").all("svg")]
    assert not any("EMA" in title for title in titles)
    lengths = (0.2, 0.05, 0.1)
    for i, length in enumerate(lengths):
        record = runs.a_record(f"e{i}", 1.0, 0.9 + 0.01 * i, 0.8, 8)
        Records(changed / "sweep").add({**record, "setting": {**record["setting"], "ema": length}})
    charts = section(read(page_of(changed)), "sweeps").all("svg")
    (found,) = [each for each in charts if each.attributes["aria-label"] == "accuracy over the EMA length"]
    assert [title.text for title in found.all("title")] == ["0.05, 0.91", "0.1, 0.92", "0.2, 0.9"]


def test_what_differs_between_runs_is_marked(whole, other):
    (table, *_) = section(read(page_of(whole, other)), "config").of_class("settings")
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (whole, other))
    changes = configs.differences(first, second)
    assert set(changes) == {"optimizer.learning_rate"} == set(rows(table))
    cells = rows(table)["optimizer.learning_rate"]
    assert [cell.all("mark")[0].text for cell in cells.values()] == ["0.002", "0.5"]
    assert len(section(read(page_of(whole, other)), "config").all("mark")) == 4


def test_comparable_runs_stand_side_by_side(whole, other):
    (table, *_) = section(read(page_of(whole, other)), "evaluation").of_class("values")
    reports = [
        json.loads((folder / "evaluation.json").read_text())["samples"][0] for folder in (whole, other)
    ]
    found = rows(table)
    assert {"frechet", "kid.value", "recall"} <= set(found)
    for path, cells in found.items():
        assert list(cells) == ["first, guidance 1 (n = 100)", "second, guidance 1 (n = 100)"]
        assert [numbers(cell)[0] for cell in cells.values()] == [lookup(report, path) for report in reports]
    assert numbers(found["frechet"]["first, guidance 1 (n = 100)"]) != numbers(
        found["frechet"]["second, guidance 1 (n = 100)"]
    )


def test_figures_that_are_not_comparable_are_refused_in_words(whole, tmp_path):
    runs.complete(tmp_path / "third", space=Space(profile="clean-fid"))
    part = section(read(page_of(whole, tmp_path / "third")), "evaluation")
    (refused,) = part.of_class("refused")
    assert "profile='clean-fid': expected the profile of first, 'adm-tf'" in refused.text
    tables = part.of_class("values")
    assert len(tables) == 2, "each run's own table, and none of both"
    assert not any("third, guidance" in table.text for table in tables)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("metrics.jsonl", "copy: The run has no metrics.jsonl"),
        ("evaluation.json", "copy: The run has no evaluation"),
        ("samples", "copy has no sample grids"),
        ("sweep", "No run has a sweep"),
    ],
)
def test_a_part_that_a_run_lacks_is_a_sentence(changed, name, sentence):
    path = changed / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert sentence in read(page_of(changed)).text


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("metrics.jsonl", b'{"step": 1, "loss": 2}\n{"step', "1 of 2 rows are damaged"),
        ("metrics.jsonl", b'{"step": 1, "loss": "high", "x": [1]}\n', "1 of 1 rows are damaged"),
        ("metrics.jsonl", b'{"step": 1, "loss": 1' + 400 * b"0" + b"}\n", "1 of 1 rows are damaged"),
        ("evaluation.json", b"[1", "evaluation.json is damaged"),
        ("evaluation.json", b"[1]", "evaluation.json is damaged"),
        ("evaluation.png", b"\x89PNG\r\n", "evaluation.png is damaged"),
        ("samples/00000020.png", b"", "The sample grid of step 20 is damaged"),
        ("sweep/sweep.jsonl", b"{\n", "The sweep cannot be shown"),
        ("sweep/sweep.jsonl", b"", "The sweep cannot be shown"),
        ("data.json", b"\xff", "data.json is damaged"),
    ],
)
def test_a_damaged_part_is_a_sentence_and_the_others_are_shown(changed, name, data, sentence):
    (changed / name).write_bytes(data)
    root = read(page_of(changed))
    assert sentence in root.text
    pictures(root)
    assert len(root.all("section")) == 6


def edited(evaluation, path, value):
    """The JSON of an evaluation with another value at a path."""
    found = json.loads(evaluation.read_text())
    inner = found
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    evaluation.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("noise_losses", "train"), ["a"]),
        (("noise_losses",), {"test": [1.0]}),
        (("samples", 0, "conditions"), 7),
        (("samples",), ["a"]),
    ],
)
def test_values_of_another_kind_are_a_sentence_and_the_others_are_shown(changed, path, value):
    edited(changed / "evaluation.json", path, value)
    root = read(page_of(changed))
    assert len(root.all("section")) == 6
    assert "k4" not in root.text
    assert "Best: " in root.text, "the sweep is shown"


@pytest.mark.parametrize("missing", ["setting", "values", "counts"])
def test_a_record_without_its_parts_is_a_sentence(changed, missing):
    file = changed / "sweep" / "sweep.jsonl"
    *lines, last = file.read_text().splitlines()
    record = json.loads(last)
    del record[missing]
    file.write_text("\n".join([*lines, json.dumps(record)]) + "\n")
    assert "This cannot be shown, its file is damaged: KeyError" in read(page_of(changed)).text


def test_a_report_of_other_metrics_leaves_the_usual_quality(changed):
    report = {
        "quality": {"path": "kid.value", "higher": False},
        "diversity": {"path": "recall", "higher": True},
    }
    (changed / "sweep" / "report.json").write_text(json.dumps(report))
    assert "accuracy 0.9" in read(page_of(changed)).text


def test_texts_of_users_are_never_markup(changed):
    config = json.loads((changed / "config.json").read_text())
    config["data"]["source"]["split"] = HOSTILE
    (changed / "config.json").write_text(json.dumps(config))
    runs.log(changed, [{"step": 1, HOSTILE: 0.5, "loss": 0.5}])
    report = json.loads((changed / "evaluation.json").read_text())
    report["samples"][0]["conditions"]["captions"] = HOSTILE
    report["samples"][0][HOSTILE] = 0.25
    report[HOSTILE] = report["real"]
    (changed / "evaluation.json").write_text(json.dumps(report))
    (changed / "classes.json").write_text(json.dumps({HOSTILE: 0}))
    (changed / "sweep/sweep.jsonl").write_text(
        (changed / "sweep/sweep.jsonl").read_text().replace('"Heun"', json.dumps(HOSTILE))
    )
    root = read(page_of(changed))
    assert not root.all("script")
    assert not root.all("b")
    assert root.text.count('<script src="http://evil.example/x.js">') >= 6
    for name in ("training", "evaluation", "sweeps", "config", "runs"):
        assert "<script" in section(root, name).text + str(
            [each.attributes for each in section(root, name).all("svg")]
        ), name
    assert "\x00" not in page_of(changed)


def test_runs_of_one_name_are_told_apart(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "first")
    names = [run.name for run in read_runs([str(whole), str(tmp_path / "first")])]
    assert len(set(names)) == 2
    assert all(name.endswith("/first") for name in names)
