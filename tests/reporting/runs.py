"""Folders of runs with all parts, made without training."""

import dataclasses
import io
import json

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from jaxdiff.evaluation.evaluation import Evaluation
from jaxdiff.evaluation.metrics.clipped import ClippedScores
from jaxdiff.evaluation.metrics.frechet import Frechet
from jaxdiff.evaluation.metrics.kid import Kid
from jaxdiff.evaluation.metrics.precision_recall import PrecisionRecall
from jaxdiff.evaluation.reports import files
from jaxdiff.sweeps.records import Records
from tests.evaluation.models import Space, inputs
from tests.sweeps.runs import a_run

IMAGES = np.round(load_digits().images[:300, ..., None] * 255 / 16).astype(np.uint8)
METRICS = (
    Frechet(Space()),
    Kid(Space(), subsets=3, subset_size=20),
    PrecisionRecall(Space()),
    ClippedScores(Space()),
)
BANDS = ("held_out_loss/0.00-0.50", "held_out_loss/0.50-1.00")
ROWS = [
    {"step": 10, "loss": 0.9, "grad_norm": 2.0, "images_per_second": 100.0},
    {"step": 20, "loss": None, "grad_norm": 1.5, "images_per_second": 110.0},
    {"step": 20, "held_out_loss": 0.5, BANDS[0]: 0.3, BANDS[1]: 0.7, "evaluation/guidance_1/recall": 0.4},
    {"step": 30, "loss": 0.4, "grad_norm": 1.0, "images_per_second": 105.0},
    {"step": 40, "held_out_loss": 0.4, BANDS[0]: 0.2, BANDS[1]: 0.6, "evaluation/guidance_1/recall": 0.6},
]
SETTINGS = {"sampler": "Heun()", "steps": 18, "nfe": 35, "dtype": "float32", "weights": "sha256:1"}


def complete(workdir, *overrides, noise=0, settings=SETTINGS, space=None):
    """A run with a log, sample grids, an evaluation and a sweep."""
    a_run(workdir, *overrides)
    log(workdir, ROWS)
    generator = np.random.default_rng(noise)
    (workdir / "samples").mkdir()
    for step in (10, 20, 40):
        (workdir / "samples" / f"{step:08}.png").write_bytes(picture(generator))
    evaluated(workdir, noise, settings, space or Space())
    swept(workdir / "sweep")
    return workdir


def log(workdir, rows):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def picture(generator):
    data = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (16, 24, 3), np.uint8)).save(data, "PNG")
    return data.getvalue()


def evaluated(workdir, noise, settings, space):
    """An evaluation of real digits with some noise, which stand for samples."""
    shift = np.random.default_rng(noise).integers(0, 1 + 5 * noise, IMAGES[:100].shape)
    samples = np.clip(IMAGES[:100].astype(int) + shift, 0, 255).astype(np.uint8)
    losses = {"log_snr": [-2.0, 0.0, 2.0], "train": [1.0, 0.5, 0.1], "test": [1.1, 0.6, 0.2]}
    model = inputs(
        lambda *_: samples,
        (),
        {"image": IMAGES[100:200]},
        {"image": IMAGES[200:]},
        settings=settings,
        noise_losses=losses,
    )
    metrics = tuple(dataclasses.replace(metric, features=space) for metric in METRICS)
    files.write(Evaluation(metrics, samples=100)(model), workdir)


def a_record(key, guidance, accuracy, recall, nfe, sampler="Ddim"):
    setting = {
        "guidance": guidance,
        "steps": 8,
        "sampler": sampler,
        "interval": "own",
        "rule": "own",
        "ema": None,
    }
    values = {"accuracy": accuracy, "recall": recall}
    return {"key": key, "scored": "s", "base": "b", "setting": setting, "nfe": nfe, "seconds_per_sample": 0.001 * nfe,
            "counts": {"accuracy": 1000, "recall": 300}, "values": values, "equal": {}, "relative": {}}  # fmt: skip


SWEPT = (
    a_record("k1", 1.0, 0.90, 0.90, 8),
    a_record("k2", 2.0, 0.97, 0.80, 8),
    a_record("k3", 3.0, 0.96, 0.60, 8),
    a_record("k4", 2.0, 0.99, 0.70, 15, sampler="Heun"),
)


def swept(folder):
    records = Records(folder)
    values = {"accuracy": 1.0, "recall": 0.95}
    records.add({"key": "real", "scored": "s", "n": 1000, "counts": SWEPT[0]["counts"], "values": values})
    for record in SWEPT:
        records.add(record)
