"""Running a sweep: each setting is sampled, scored and recorded in turn."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import jaxdiff
from jaxdiff import config as configs
from jaxdiff.config.files import plain
from jaxdiff.errors import UserError
from jaxdiff.evaluation import metric as folds
from jaxdiff.evaluation.scoring import Scorer
from jaxdiff.generation.compiled import PROGRAMS
from jaxdiff.generation.generator import Generator
from jaxdiff.runs.weights import fingerprint
from jaxdiff.sweeps.measures import counts
from jaxdiff.sweeps.presets import block
from jaxdiff.sweeps.records import REAL, Record, Records, Samples, key_of, of_one_sweep
from jaxdiff.sweeps.settings import OWN, Setting


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A setting, ready to be sampled.

    Attributes:
      setting: the setting.
      generator: samples with its recipe, weights and guiding model.
      negative: conditions to guide away from; None for no condition.
    """

    setting: Setting
    generator: Generator
    negative: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """The settings of one run, and what they are scored with.

    Attributes:
      scorer: the metrics after the real examples.
      records: the folder of results.
      model: the config block of the task, which decides what the weights compute.
      plain: the run's generator as it is without the sweep.
      keep_images: whether samples are stored.
      report: called with a line of text after each setting.
    """

    scorer: Scorer
    records: Records
    model: Any
    plain: Generator
    keep_images: bool = True
    report: Callable[[str], object] = print
    _hashes: "_Hashes" = dataclasses.field(default_factory=lambda: _Hashes(), repr=False)

    def __call__(self, candidates: Sequence[Candidate]) -> list[Record]:
        """The records of all candidates. Recorded ones are neither sampled nor scored again."""
        found = []
        for number, candidate in enumerate(candidates, 1):
            key = self.key(candidate.generator, candidate.setting.negative)
            record = self.records.found.get((key, self.scored))
            text = "" if record is None else ", recorded earlier"
            if record is None:
                record = self._made(candidate, key)
            found.append(record)
            self.report(f"[{number}/{len(candidates)}] {candidate.setting}{text}")
        return found

    def recorded(self) -> list[Record]:
        """All records of this run and these metrics, also of earlier sweeps; the latest of each setting."""
        return of_one_sweep(self.records.found.values(), self.scored, self.base)

    @functools.cached_property
    def base(self) -> str:
        """The hash of the run as it is without the sweep and its guiding model: records of one base belong together."""
        parts = {"recipe": block(self.plain.recipe), "model": plain(self.model)}
        return key_of({**parts, "weights": self._hashes.one(self.plain.params)})

    @functools.cached_property
    def scored(self) -> str:
        """The hash of everything that decides the values of given samples."""
        scorer = self.scorer
        parts = {
            "metrics": [_described(metric) for metric in scorer.metrics],
            "settings": plain(folds.settings(scorer.metrics)),
            "data": dict(scorer.fingerprints),
            "n": scorer.samples,
            "seed": scorer.seed,
        }
        return key_of(parts)

    def key(self, generator: Generator, negative: str = OWN) -> str:
        """The hash of everything that decides the samples: recipe, model, weights, number, seed and conditions."""
        requests = self.scorer.requests
        asked = (
            fingerprint({"labels": requests.labels})
            if requests.rows is None
            else self.scorer.fingerprints["test"]
        )
        parts = {
            "recipe": block(generator.recipe),
            "model": plain(self.model),
            "weights": self._hashes.of(generator),
            "n": self.scorer.samples,
            "seed": self.scorer.seed,
            "requests": asked,
            **({} if negative == OWN else {"negative": negative}),
        }
        return key_of(parts)

    def real(self) -> Record:
        """The record of real images, which is written once."""
        record = self.records.found.get((REAL, self.scored))
        if record is None:
            n = int(self.scorer.matched.sum())
            record = {
                "key": REAL,
                "scored": self.scored,
                "n": n,
                "counts": counts(self.scorer.metrics, n, self.scorer.counts),
                "values": dict(self.scorer.real),
            }
            self.records.add(record)
        return record

    def _made(self, candidate: Candidate, key: str) -> Record:
        samples, shape = self.records.samples(key), (self.scorer.samples, *self.scorer.shape)
        if samples is None or samples.images.shape != shape:
            samples = self._sampled(candidate)
            if self.keep_images:
                self.records.keep(key, samples)
        record = self._record(candidate, key, samples)
        self.records.add(record)
        return record

    def _record(self, candidate: Candidate, key: str, samples: Samples) -> Record:
        generator, scorer = candidate.generator, self.scorer
        scores = scorer.score(scorer.kept(samples.images))
        return {
            "key": key,
            "scored": self.scored,
            "setting": dataclasses.asdict(candidate.setting),
            "base": self.base,
            "recipe": configs.to_json(block(generator.recipe)),
            "weights": self._hashes.of(generator),
            "n": scorer.samples,
            "seed": scorer.seed,
            "nfe": generator.calls,
            "seconds_per_sample": samples.seconds,
            "batch": samples.rows,
            "version": jaxdiff.__version__,
            "counts": counts(scorer.metrics, scorer.samples, scorer.counts),
            "values": scores.values,
            "equal": scores.equal,
            "relative": scores.relative,
        }

    def _sampled(self, candidate: Candidate) -> Samples:
        """The samples of a candidate, and the median time of its batches after compilation."""
        times: list[float] = []
        sample = functools.partial(candidate.generator, negative=candidate.negative)

        def generate(given: Mapping[str, Any], seed: int, guidance: float, first: int) -> np.ndarray:
            images, seconds, waited = _timed(lambda: sample(**given, seed=seed, first=first))
            if waited and scorer.samples <= scorer.inputs.batch_size:  # there is no later batch to time
                images, seconds, waited = _timed(lambda: sample(**given, seed=seed, first=first))
            if not waited:
                times.append(seconds)
            return images

        scorer = self.scorer
        images = np.concatenate([batch.images for batch in scorer.generated(generate, 1.0)])
        rows = min(scorer.inputs.batch_size, scorer.samples)
        return Samples(images, statistics.median(times) / rows, rows)


def _timed(generate: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, bool]:
    """Samples, the seconds that they took, and whether a program was compiled for them."""
    before, start = PROGRAMS.count, time.perf_counter()
    images = generate()
    return images, time.perf_counter() - start, PROGRAMS.count > before


class _Hashes:
    """Hashes of the weights of generators; generators that share weights are hashed once."""

    def __init__(self) -> None:
        self._known: list[tuple[Any, str]] = []

    def of(self, generator: Generator) -> str:
        models = [generator] if generator.guiding_model is None else [generator, generator.guiding_model]
        return "+".join(self.one(model.params) for model in models)

    def one(self, params: Any) -> str:
        for known, found in self._known:
            if known is params:
                return found
        self._known.append((params, fingerprint(params)[:16]))
        return self._known[-1][1]


def _described(metric: Any) -> Any:
    """The settings of a metric as JSON values."""
    try:
        return plain(configs.describe(metric))
    except UserError:  # a part of it is no dataclass
        return repr(metric)
