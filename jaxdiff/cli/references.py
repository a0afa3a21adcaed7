"""``python -m jaxdiff.evaluate --reference data=...``: reference statistics of a data set, as a file."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxdiff.cli.output import Output, place
from jaxdiff.errors import expect

PREFIX = "data="
SPLITS = {"train": "data", "test": "test_data"}
"""Data of a run -> field of its config."""


def is_request(text: str | None) -> bool:
    """Whether a value of ``--reference`` asks for new statistics; others name a file of statistics."""
    return text is not None and text.startswith(PREFIX)


def make(flags: argparse.Namespace, overrides: Sequence[tuple[str, str]], packages: tuple[str, ...]) -> None:
    """Measure the features of all examples of a data set, and write their mean and covariance.

    Raises:
      UserError: data or features are missing or unknown, or the output cannot be written.
    """
    output = _output(flags)
    size = flags.batch_size
    expect(size > 0, "--batch-size", size, "a number of images > 0", "give at least 1")
    config = _config(flags, overrides, packages)
    features, pipeline = _features(flags, config, packages), _pipeline(flags, config, packages)

    import jax

    from jaxdiff.distributed import runtime
    from jaxdiff.distributed.first_process import in_first
    from jaxdiff.evaluation import references
    from jaxdiff.evaluation.metrics import reference_files

    runtime.start()
    in_first(output.check)
    gaussian = references.measure(pipeline.stored(), features, size)
    fix = "give more; a reference of few images says little"
    expect(gaussian.n > 1, "--reference", flags.reference, "two images or more", fix, str(gaussian.n))
    made = references.made(features, pipeline.fingerprint())
    in_first(lambda: output.write(lambda path: reference_files.save(path, gaussian, made)))
    found = f"{gaussian.n} images, {len(gaussian.mean)} numbers each, {reference_files.fingerprint(gaussian)}"
    if jax.process_index() == 0:
        print(f"{flags.out}: {found}\n{features.name}")


def _output(flags: argparse.Namespace) -> Output:
    expect(
        flags.out is not None, "--out", flags.out, "the name of a new .npz file", "give --out reference.npz"
    )
    path = place("--out", flags.out)
    is_archive = pathlib.Path(path).suffix == ".npz"
    expect(is_archive, "--out", flags.out, "a name that ends in .npz", "give --out reference.npz")
    return Output(f"--out={flags.out}", path, ".npz", flags.overwrite)


def _config(
    flags: argparse.Namespace, overrides: Sequence[tuple[str, str]], packages: tuple[str, ...]
) -> Any:
    """The config of the run that `--workdir` names; None without it."""
    if flags.workdir is None:
        return None
    from jaxdiff.config.overrides import override
    from jaxdiff.runs.stages import read_model_config

    config = read_model_config(flags.workdir)
    for path, text in overrides:
        override(config, path, text, packages=packages)
    return config


def _features(flags: argparse.Namespace, config: Any, packages: tuple[str, ...]) -> Any:
    from jaxdiff import config as configs
    from jaxdiff.config.overrides import block
    from jaxdiff.evaluation.protocols import FeatureExtractor

    if flags.features is not None:
        found: Any = configs.build(block("--features", flags.features), packages=packages)
        fix, got = "give --features jaxdiff.evaluation.features.pixels:Pixels", type(found).__name__
        expect(isinstance(found, FeatureExtractor), "--features", flags.features, "a feature space", fix, got)
        return found
    features = getattr(None if config is None else config.evaluation, "features", None)
    fix = "give --features jaxdiff.evaluation.features.pixels:Pixels"
    expected = "a feature space, or a run whose evaluation has one"
    expect(features is not None, "--features", flags.features, expected, fix)
    return configs.build(features, packages=packages)


def _pipeline(flags: argparse.Namespace, config: Any, packages: tuple[str, ...]) -> Any:
    from jaxdiff import config as configs
    from jaxdiff.config.overrides import block
    from jaxdiff.data.pipeline import Pipeline, Source

    text = flags.reference.removeprefix(PREFIX)
    if text not in SPLITS:
        expected = "data=train or data=test of a --workdir, or data=module:Class(...), a source"
        fix = "give one of these, such as data='jaxdiff.data.folder:ImageFolder(path=\"photos\", size=64, label=None)'"
        expect(":" in text, "--reference", flags.reference, expected, fix)
        source: Any = configs.build(block("--reference", text), packages=packages)
        got, known = type(source).__name__, isinstance(source, Source)
        expect(known, "--reference", flags.reference, "a source of examples", fix, got)
        return Pipeline(source)
    data = None if config is None else config.get(SPLITS[text])
    expect(data is not None, "--reference", flags.reference, f"a run with {text} data", "give its --workdir")
    return configs.build(data, packages=packages)
