"""What all evaluations of pairs share: the chosen images, samples of an input, reports, batches, and errors."""

import dataclasses
import json

import numpy as np
import pytest

from jaxdiff import config
from jaxdiff.data.images import to_uint8
from jaxdiff.errors import UserError
from jaxdiff.evaluation.baselines import Enlarged
from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.metric import Batch
from jaxdiff.evaluation.protocols import Evaluator
from jaxdiff.evaluation.reports import paired
from jaxdiff.evaluation.reports.files import write
from jaxdiff.evaluation.reports.image_to_image import TranslationEvaluation
from jaxdiff.evaluation.reports.super_resolution import SuperResolutionEvaluation
from tests.evaluation.reports.paired_models import PATCHES, TASKS, answering, model_of

LOSSES = {"log_snr": [-2.0, 0.0, 2.0], "train": [1.0, 0.5, 0.1], "test": [1.1, 0.6, 0.2]}


def test_chosen_images_are_spread_over_all_and_over_each_task():
    np.testing.assert_array_equal(paired.evenly(np.zeros(5, int), 9), np.arange(5))
    np.testing.assert_array_equal(paired.evenly(np.zeros(9, int), 3), [0, 4, 8])
    task = np.arange(120) % 4  # a spread by 4 rows would see one task
    chosen = paired.evenly(task, 30)
    assert len(chosen) == 30
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(task[chosen]).min() >= 7
    for t in range(4):
        rows = chosen[task[chosen] == t]
        assert rows.min() < 16
        assert rows.max() >= 104


@pytest.mark.slow
def test_the_first_sample_of_an_input_is_scored(small, partial):
    for evaluation, examples, condition in (
        (SuperResolutionEvaluation(n=8, samples_per_input=2, seed=5), small, "low_res"),
        (TranslationEvaluation(TASKS, n=8, samples_per_input=2, seed=5), partial, "source"),
    ):
        truth = answering(examples, condition, examples[1]["image"])

        def generate(conditions, seed, guidance, truth=truth):
            return truth(conditions, seed, guidance) // (1 if seed == 5 else 2)

        values = evaluation(model_of(generate, examples, condition)).values
        column = values["tasks"]["all"] if "tasks" in values else values
        assert column["samples"][0]["frechet"] < 1e-9
        assert column["samples"][0]["diversity"] > 10


@pytest.fixture(scope="module")
def reports(small, partial):
    settings = {"settings": {"sampler": "Heun()", "steps": 12}, "noise_losses": LOSSES}
    sharp = SuperResolutionEvaluation(n=12, samples_per_input=2, guidances=(2.0,))
    both = TranslationEvaluation(TASKS, n=12, samples_per_input=2, guidances=(2.0,))
    return [
        sharp(model_of(answering(small, "low_res", small[1]["image"]), small, "low_res", **settings)),
        both(model_of(answering(partial, "source", partial[1]["image"]), partial, "source", **settings)),
    ]


@pytest.mark.slow
def test_reports_can_be_stored_and_state_their_conditions(reports, tmp_path):
    for found in reports:
        write(found, str(tmp_path))
        stored = json.loads((tmp_path / "evaluation.json").read_text())
        assert (
            stored["conditions"] | {"n": 12, "seed": 0, "sampler": "Heun()", "steps": 12}
            == stored["conditions"]
        )
        assert "8 x 8" in stored["conditions"]["features"]
        assert stored["noise_losses"] == LOSSES
        assert len({len(row) for row in found.table}) == 1
        assert "sampler Heun()" in str(found)
        assert found.scalars
        assert all(np.isfinite(value) for value in found.scalars.values())


def shows(figure, image, times):
    """Whether a figure contains the image, with its pixels enlarged to squares."""
    large = image.repeat(times, axis=0).repeat(times, axis=1)
    height, width = large.shape[:2]
    lines = ((y, line.tobytes().find(large[0].tobytes()) // 3) for y, line in enumerate(figure))
    return any((figure[y : y + height, x : x + width] == large).all() for y, x in lines if x >= 0)


@pytest.mark.slow
def test_figures_show_conditions_samples_and_truths_pixel_by_pixel(reports, small, partial):
    sharp, both = reports
    first = int(partial[1]["task"].argmin())  # of the first task
    assert shows(sharp.figure, small[1]["image"][0], 4)
    assert shows(sharp.figure, small[1]["low_res"][0], 16)
    assert shows(sharp.figure, Enlarged(4)(small[1]["low_res"][:1])[0], 4)
    assert shows(both.figure, partial[1]["image"][first], 4)
    assert shows(both.figure, to_uint8(partial[1]["source"][first : first + 1, ..., :3])[0], 4)


def test_further_samples_of_an_input_are_shown_after_the_first():
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 4, 3)).astype(np.uint8)
    shown = paired.Shown(np.array([4, 1]))

    def batches(k):
        for part in (slice(0, 2), slice(2, 5)):
            rows = np.arange(5)[part]
            yield Batch("samples", images[0, part], {}, 0 * rows, rows, repeats=images[:k, part])

    for title, k in (("guidance 1", 1), ("guidance 2.5", 9)):
        assert sum(len(batch.images) for batch in shown.watch(title, batches(k))) == 5
    assert list(shown.columns) == ["guidance 1", "guidance 2.5 #1", "guidance 2.5 #2", "guidance 2.5 #3"]
    np.testing.assert_array_equal(shown.columns["guidance 2.5 #3"], images[2, [4, 1]])


@pytest.mark.slow
def test_batches_of_any_size_are_the_same_evaluation(small, partial):
    """Image i of a seed is generated in any batch."""
    for evaluation, examples, condition in (
        (SuperResolutionEvaluation(n=21, samples_per_input=2, features=PATCHES), small, "low_res"),
        (TranslationEvaluation(TASKS, n=21, samples_per_input=2, features=PATCHES), partial, "source"),
    ):
        answer = answering(examples, condition, examples[1]["image"] // 2)

        def generate(conditions, seed, guidance, first, answer=answer):
            return answer(conditions, seed, guidance) + np.uint8(seed)

        large = model_of(answer, examples, condition)
        large = dataclasses.replace(large, generate=generate)
        expected, found = (evaluation(dataclasses.replace(large, batch_size=size)) for size in (1000, 8))
        assert flat(found.values) == pytest.approx(flat(expected.values), rel=1e-6, abs=1e-9)


def flat(values, path=""):
    items = values.items() if isinstance(values, dict) else enumerate(values)
    found = {}
    for key, value in items:
        if isinstance(value, dict | list):
            found |= flat(value, f"{path}.{key}")
        elif isinstance(value, float):
            found[f"{path}.{key}"] = value
    return found


def test_evaluations_are_config_blocks():
    for evaluation in (
        config.spec(SuperResolutionEvaluation, factor=2, features=config.spec(Patches, size=4, stride=2)),
        config.spec(TranslationEvaluation, tasks=TASKS, keep_luma=("colourise",)),
    ):
        assert isinstance(config.build(evaluation), Evaluator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SuperResolutionEvaluation(factor=1), "factor=1"),
        (lambda: SuperResolutionEvaluation(n=1), "n=1"),
        (lambda: SuperResolutionEvaluation(samples_per_input=0), "samples_per_input=0"),
        (lambda: TranslationEvaluation(()), "tasks="),
        (lambda: TranslationEvaluation(("a", "a")), "tasks="),
        (lambda: TranslationEvaluation(("a", "all")), "tasks=.*'all'"),
        (lambda: TranslationEvaluation(("a", "b"), task_field=None), "task_field=None"),
        (lambda: TranslationEvaluation(("a",), keep_luma=("b",)), "keep_luma="),
        (lambda: TranslationEvaluation(("a",), hints=(None, None)), "hints="),
        (lambda: TranslationEvaluation(("a",), n=1), "n=1"),
        (lambda: TranslationEvaluation(("a",), samples_per_input=0), "samples_per_input=0"),
    ],
)
def test_invalid_settings_are_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_settings_that_do_not_fit_the_data_are_errors(small, partial):
    def black(conditions, seed, guidance):
        return np.zeros((20, 32, 32, 3), np.uint8)

    def evaluated(evaluation, examples, condition, generate=black):
        return evaluation(model_of(generate, examples, condition))

    sharp, both = SuperResolutionEvaluation(n=20), TranslationEvaluation(TASKS, n=20)
    with pytest.raises(UserError, match=r"condition='other'.*low_res"):
        evaluated(dataclasses.replace(sharp, condition="other"), small, "low_res")
    with pytest.raises(UserError, match=r"source=.*test examples"):
        evaluated(dataclasses.replace(sharp, condition="source"), small, "source")
    with pytest.raises(UserError, match="factor=2"):
        evaluated(dataclasses.replace(sharp, factor=2), small, "low_res")
    with pytest.raises(UserError, match="task_field='kind'"):
        evaluated(dataclasses.replace(both, task_field="kind"), partial, "source")
    with pytest.raises(UserError, match=r"tasks=.*\[0, 1\]"):
        evaluated(dataclasses.replace(both, tasks=("colourise",)), partial, "source")
    opaque = partial[0], {**partial[1], "source": np.ones_like(partial[1]["source"])}
    with pytest.raises(UserError, match="nothing is to be generated"):
        evaluated(both, opaque, "source")
    with pytest.raises(UserError, match="one channel more"):
        evaluated(dataclasses.replace(both, condition="image"), partial, "image")
    with pytest.raises(ValueError, match="expected uint8"):
        evaluated(sharp, small, "low_res", lambda *_: np.zeros((20, 32, 32, 3), np.float32))
