"""Sweeps of a small model: what is sampled, how often, and what is kept."""

import dataclasses
import json

import numpy as np
import pytest

from jaxdiff.evaluation.metrics.frechet import Frechet
from jaxdiff.evaluation.metrics.precision_recall import PrecisionRecall
from jaxdiff.evaluation.scoring import Scorer
from jaxdiff.generation.compiled import PROGRAMS
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sweeps.guidance import recipe_of
from jaxdiff.sweeps.measures import Measure
from jaxdiff.sweeps.records import LINES, Records
from jaxdiff.sweeps.report import SweepReport
from jaxdiff.sweeps.running import Candidate, Sweep
from jaxdiff.sweeps.settings import Axes
from tests.evaluation import models
from tests.generation.test_generator import SHAPE, a_generator

N, BATCH = 20, 16
LABELS = np.arange(N) % 5
PLAIN = ClassifierFree(2.0)
TEXTS = dict.fromkeys(("guidance", "steps", "sampler", "interval", "rule", "ema"))


@pytest.fixture(scope="module")
def generator():
    return a_generator(PLAIN, slope=0.3, steps=3)


@pytest.fixture(scope="module")
def scorer():
    """Metrics after random images of the five classes."""
    images = np.random.default_rng(0).integers(0, 256, (60, *SHAPE), np.uint8)
    real = {"image": images, "label": np.arange(60) % 5}
    test = {"image": images[:30], "label": real["label"][:30]}
    inputs = dataclasses.replace(models.inputs(None, ("label",), real, test), batch_size=BATCH)
    return Scorer.read((PrecisionRecall(k=3), Frechet()), inputs, N, 0)


def candidates(generator, **texts):
    found = []
    for setting in Axes.parse(TEXTS | texts).settings():
        steps = dataclasses.replace(generator.recipe, steps=setting.steps or generator.recipe.steps)
        recipe = recipe_of(steps, setting)
        found.append(Candidate(setting, dataclasses.replace(generator, recipe=recipe)))
    return found


def a_sweep(generator, scorer, folder, **options):
    said = []
    return Sweep(scorer, Records(folder), {"target": "model"}, generator, report=said.append, **options), said


def without_times(record):
    return {name: value for name, value in record.items() if name != "seconds_per_sample"}


@pytest.mark.slow
def test_swept_images_are_those_of_the_generator_bit_for_bit_alone_and_with_others(
    generator, scorer, tmp_path
):
    every = candidates(generator, guidance="1,1.5,3", interval="none,0.5:2", steps="2,3")
    sweep, _ = a_sweep(generator, scorer, tmp_path / "together")
    for candidate, record in zip(every, sweep(every), strict=True):
        images = sweep.records.samples(record["key"]).images
        recipe = dataclasses.replace(candidate.generator.recipe, guidance=PLAIN)
        interval = candidate.generator.recipe.guidance.interval
        rule = dataclasses.replace(PLAIN, interval=interval)
        fresh = dataclasses.replace(generator, recipe=dataclasses.replace(recipe, guidance=rule))
        expected = fresh(label=LABELS[:BATCH], guidance=candidate.setting.guidance)
        np.testing.assert_array_equal(images[:BATCH], expected)
        expected = fresh(label=LABELS[BATCH:], guidance=candidate.setting.guidance, first=BATCH)
        np.testing.assert_array_equal(images[BATCH:], expected)
    alone, _ = a_sweep(generator, scorer, tmp_path / "alone")
    (single,) = alone(every[-1:])
    np.testing.assert_array_equal(alone.records.samples(single["key"]).images, images)
    assert without_times(single) == without_times(record)


def test_negative_conditions_are_those_of_the_generator_and_compile_nothing(generator, scorer, tmp_path):
    (plain,) = candidates(generator, guidance="2")
    sweep, _ = a_sweep(generator, scorer, tmp_path)
    sweep([plain])
    before = PROGRAMS.count
    away = [
        dataclasses.replace(
            plain, setting=dataclasses.replace(plain.setting, negative=f"label={i}"), negative={"label": i}
        )
        for i in range(2)
    ]
    records = sweep(away)
    assert PROGRAMS.count == before
    for i, record in enumerate(records):
        images = sweep.records.samples(record["key"]).images
        expected = generator(label=LABELS[:BATCH], guidance=2.0, negative={"label": i})
        np.testing.assert_array_equal(images[:BATCH], expected)
    keys = {record["key"] for record in sweep.recorded()}
    assert len(keys) == 3
    assert sweep.key(plain.generator) in keys
    again, said = a_sweep(generator, scorer, tmp_path)
    assert again([plain, *away]) == sweep.recorded()
    assert all(line.endswith("recorded earlier") for line in said)
    assert "guidance 2 with negative label=1" in said[2]


def test_many_scales_and_intervals_are_compiled_once(generator, scorer, tmp_path):
    generator = dataclasses.replace(
        generator, recipe=dataclasses.replace(generator.recipe, sampler=Ddim(0.5))
    )
    for texts in ({"guidance": "1.5,2,3"}, {"guidance": "1.5,2", "interval": "0.3:3,0.5:2"}):
        sweep, _ = a_sweep(generator, scorer, tmp_path)
        before = PROGRAMS.count
        sweep(candidates(generator, **texts))
        assert PROGRAMS.count == before + 1


def test_a_second_sweep_adds_what_is_new_and_samples_nothing_again(generator, scorer, tmp_path):
    sweep, _ = a_sweep(generator, scorer, tmp_path)
    first = sweep(candidates(generator, guidance="1.5,2"))
    lines = (tmp_path / LINES).read_bytes()
    again, said = a_sweep(generator, scorer, tmp_path)
    assert again(candidates(generator, guidance="1.5,2")) == first
    assert (tmp_path / LINES).read_bytes() == lines
    assert all(line.endswith("recorded earlier") for line in said)
    again(candidates(generator, guidance="1.5,3"))
    assert (tmp_path / LINES).read_bytes().startswith(lines)
    assert [record["setting"]["guidance"] for record in again.recorded()] == [1.5, 2.0, 3.0]


def test_kept_images_are_scored_and_not_sampled(generator, scorer, tmp_path):
    """Without its line a setting is scored again, from the images in the folder: here, others."""
    sweep, _ = a_sweep(generator, scorer, tmp_path)
    (record,) = sweep(candidates(generator, guidance="2"))
    kept = sweep.records.samples(record["key"])
    others = np.random.default_rng(1).integers(0, 256, kept.images.shape, np.uint8)
    sweep.records.keep(record["key"], kept._replace(images=others))
    (tmp_path / LINES).unlink()
    again, _ = a_sweep(generator, scorer, tmp_path)
    (found,) = again(candidates(generator, guidance="2"))
    assert found["values"] == scorer.score(scorer.kept(others)).values != record["values"]
    assert found["seconds_per_sample"] == record["seconds_per_sample"]


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x[:, 1:], lambda x: x / np.float32(255)])
def test_kept_images_of_another_kind_are_sampled_again(change, generator, scorer, tmp_path):
    sweep, _ = a_sweep(generator, scorer, tmp_path)
    (record,) = sweep(candidates(generator, guidance="2"))
    kept = sweep.records.samples(record["key"])
    sweep.records.keep(record["key"], kept._replace(images=change(kept.images)))
    (tmp_path / LINES).unlink()
    again, _ = a_sweep(generator, scorer, tmp_path)
    (found,) = again(candidates(generator, guidance="2"))
    assert found["values"] == record["values"]
    np.testing.assert_array_equal(again.records.samples(record["key"]).images, kept.images)


def test_a_guiding_model_of_some_settings_leaves_the_others_in_the_report(generator, scorer, tmp_path):
    sweep, _ = a_sweep(generator, scorer, tmp_path)
    sweep(candidates(generator, guidance="1.5"))
    params = generator.params | {"network": {"gain": np.float32(0.9), "slope": np.float32(0.3)}}
    guided = dataclasses.replace(generator, guiding_model=dataclasses.replace(generator, params=params))
    second, _ = a_sweep(guided, scorer, tmp_path)
    second(candidates(generator, guidance="2"))
    assert [record["setting"]["guidance"] for record in second.recorded()] == [1.5, 2.0]


def test_without_images_only_figures_are_kept(generator, scorer, tmp_path):
    sweep, _ = a_sweep(generator, scorer, tmp_path, keep_images=False)
    (record,) = sweep(candidates(generator, guidance="2"))
    assert not (tmp_path / "images").exists()
    assert sweep.records.samples(record["key"]) is None


def test_keys_depend_on_all_that_decides_the_samples(generator, scorer, tmp_path):
    sweep, _ = a_sweep(generator, scorer, tmp_path)
    params = generator.params | {"network": {"gain": np.float32(1.0), "slope": np.float32(0.31)}}
    changes = [
        dataclasses.replace(generator, params=params),
        *(each.generator for each in candidates(generator, guidance="1.5,3", steps="2,4")),
    ]
    keys = [sweep.key(each) for each in (generator, *changes)]
    other = dataclasses.replace(sweep, model={"target": "other"})
    more = Scorer.read(scorer.metrics, scorer.inputs, N + 10, 0)
    seeded = Scorer.read(scorer.metrics, scorer.inputs, N, 1)
    keys += [
        other.key(generator),
        *(dataclasses.replace(sweep, scorer=s).key(generator) for s in (more, seeded)),
    ]
    assert len(set(keys)) == len(keys)
    fewer = dataclasses.replace(sweep, scorer=Scorer.read(scorer.metrics[:1], scorer.inputs, N, 0))
    assert fewer.key(generator) == sweep.key(generator), "metrics do not decide samples"


def test_real_images_are_scored_as_samples_are(scorer):
    """The training images that stand for the samples, in the place of samples."""
    images = scorer.inputs.train.rows(scorer.chosen)["image"]
    scores = scorer.score(scorer.kept(images))
    assert scores.values == scorer.real
    assert scores.relative == {"recall": 1.0, "coverage": 1.0}


def test_the_report_lists_every_setting_and_its_files_open(generator, scorer, tmp_path):
    sweep, _ = a_sweep(generator, scorer, tmp_path)
    sweep(candidates(generator, guidance="1,1.5,3", interval="none,0.5:2"))
    report = SweepReport(sweep.recorded(), sweep.real(), Measure("precision", True), Measure("recall", True))
    text = str(report)
    for record in report.records:
        assert f"{record['values']['recall']:.3f}" in text
    report.write(tmp_path, {"programs": 2})
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["answer"] == report.answer
    keys = {record["key"] for record in report.records}
    assert set(stored["choices"].values()) <= keys
    assert all(set(front) <= keys and front for front in stored["fronts"].values())
    for name in ("pareto.png", "collapse.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
