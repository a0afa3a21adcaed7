"""Fréchet distances with names: the name belongs to one space, and few samples are refused."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.evaluation import Evaluation
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics import reference_files
from jaxdiff.evaluation.metrics.fid import FEWEST, FdDinov2, Fid, SpatialFid
from jaxdiff.evaluation.metrics.frechet import Frechet
from jaxdiff.evaluation.metrics.moments import Gaussian
from jaxdiff.evaluation.reports.class_conditional import ImageEvaluation
from jaxdiff.evaluation.reports.image_to_image import TranslationEvaluation
from jaxdiff.evaluation.reports.super_resolution import SuperResolutionEvaluation
from jaxdiff.evaluation.scenes.report import SceneEvaluation
from tests.evaluation.models import Space, score

INCEPTION = Space("Inception-v3 (FID)")
SPACES = {
    Fid: INCEPTION,
    SpatialFid: Space("Inception-v3 spatial (sFID)"),
    FdDinov2: Space("DINOv2 ViT-L/14"),
}


@pytest.mark.parametrize("metric", SPACES)
def test_a_name_belongs_to_one_space(metric):
    found = metric(SPACES[metric])
    assert found.table()[0].label == f"{found.name} to test"
    for other, space in SPACES.items():
        if other is not metric:
            with pytest.raises(UserError, match=f"features=.*expected .* that of {found.name}"):
                metric(space)
    for space in (
        Pixels(),
        Space("DINOv2 other at 224 pixels"),
        Space("Inception-v3 pool of other weights (sha256:0)"),
    ):
        with pytest.raises(UserError, match=f"features='{space.name[:6]}"):
            metric(space)


def images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 2, 2, 1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed=-1: expected a 32-bit whole number"),
        ({"seed": 2**32}, "seed=4294967296: expected a 32-bit whole number"),
        ({"guidances": (1.5, float("nan"))}, "guidances=nan: expected finite scales"),
        ({"guidances": (1e9,)}, "guidances=1000000000.0: expected finite scales of at most 1000"),
        ({"metrics": ()}, r"metrics=\(\): expected at least one metric"),
    ],
)
def test_what_no_sampler_takes_is_refused_when_the_config_is_built(options, message):
    with pytest.raises(UserError, match=message):
        Evaluation(**{"metrics": (Frechet(),), **options})


@pytest.mark.parametrize(
    "kind", [ImageEvaluation, SceneEvaluation, TranslationEvaluation, SuperResolutionEvaluation]
)
def test_each_evaluation_refuses_such_a_seed_and_such_scales(kind):
    own = {TranslationEvaluation: {"condition": "source", "tasks": ("one",)}}.get(kind, {})
    for options in ({"seed": -1}, {"guidances": (float("inf"),)}):
        with pytest.raises(UserError, match=r"seed=-1|guidances=inf"):
            kind(**own, **options)


def test_few_samples_are_refused_before_anything_is_generated():
    with pytest.raises(UserError, match=r"samples=2047: expected at least 2048 for FID.* few=True"):
        Evaluation((Fid(INCEPTION),), samples=FEWEST - 1)
    Evaluation((Fid(INCEPTION),), samples=FEWEST)
    Evaluation((Fid(INCEPTION, few=True),), samples=10)


def test_a_reference_of_few_images_is_refused(tmp_path):
    file = str(tmp_path / "few.npz")
    reference_files.save(file, Gaussian(np.zeros(2), np.eye(2), FEWEST - 1), {})
    with pytest.raises(UserError, match=r"reference=.*statistics of at least 2048 images for FID, got 2047"):
        Fid(INCEPTION, file).init()
    Fid(INCEPTION, file, few=True).init()
    reference_files.save(file, Gaussian(np.zeros(2), np.eye(2), 0), {})  # a file that does not state n
    Fid(INCEPTION, file).init()


def test_the_value_is_the_frechet_distance_and_none_for_few_images():
    many, few = images(FEWEST, 0), images(FEWEST - 1, 0)
    real = images(300, 1)
    found = score(Fid(INCEPTION), many, test=real, size=500)
    assert found["fid"] == score(Frechet(INCEPTION), many, test=real, size=500)["frechet"]
    assert found["fid_n"] == {"samples": FEWEST, "reference": 300}
    refused = score(Fid(INCEPTION), few, test=real)
    assert refused == {"fid": None, "fid_n": {"samples": FEWEST - 1, "reference": 300}}
    assert score(Fid(INCEPTION, few=True), few, test=real)["fid"] > 0
