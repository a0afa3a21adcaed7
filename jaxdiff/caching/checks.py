"""Comparison of a cache with the config that uses it, and with the examples it was made of.

The key compares configs, lists of files and weights. What they do not say, a few examples do: these are read and
transformed again, and compared with the hashes in their records.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxdiff.caching import key
from jaxdiff.caching.folder import Description, Folder, Records
from jaxdiff.caching.outcomes import chain, outcomes
from jaxdiff.caching.records import Distinct, distinct, hashes, inputs_of
from jaxdiff.data.pipeline import Examples, Pipeline
from jaxdiff.errors import UserError

SAMPLED = 16
"""Examples that are compared, evenly spread."""

SEARCHED = 4096
"""Examples that are compared, from the first on, to name one where the source has changed."""


def transformed(
    pipeline: Pipeline, examples: Examples, index: int
) -> tuple[dict[str, Distinct], tuple[int, ...]]:
    """The distinct values of each field of an example behind all transforms, and `Outcomes.counts`."""
    results, counts = outcomes(chain(pipeline), examples[index])
    return distinct(results), counts


def check(folder: Folder, description: Description, found: key.Key, pipeline: Pipeline, fix: str) -> None:
    """Raise `UserError` unless a cache was made with this config from these examples; the error names what changed.

    Args:
      found: the key of the config.
      pipeline: of the config; of its source a few examples are read.
    """
    changed, shards = key.changes(description.made_by, found), folder.shards(description)
    records = folder.records(list(itertools.takewhile(lambda file: file.exists(), shards)))
    if not changed:
        rows = np.linspace(0, len(records) - 1, min(SAMPLED, len(records))).astype(int).tolist()
        changed = _first_change(pipeline, records, rows)
    elif all(name.startswith("data.source") for name in changed):
        changed += _first_change(pipeline, records, range(min(SEARCHED, len(records))))
    if changed:
        where, expected = f"{folder.flag}={folder.path}", "a cache that was made with this config"
        raise UserError(f"{where}: expected {expected}, got changes ({'; '.join(changed)}). Fix: {fix}")


def _first_change(pipeline: Pipeline, records: Records, rows: Iterable[int]) -> list[str]:
    """The first of some examples that differs from its record, and its fields that do; nothing if all are equal."""
    examples: Any = key.source_of(pipeline).open()
    for row in rows:
        if row >= len(examples):
            break
        inputs, _ = transformed(pipeline, examples, row)
        stored, found = inputs_of(records[row]), hashes(inputs)
        differs = np.any(stored != found, axis=1) if stored.shape == found.shape else itertools.repeat(True)
        names = [name for name, each in zip(sorted(inputs), differs, strict=False) if each]
        if names:
            return [f"example {row}: {', '.join(names)}"]
    return []
