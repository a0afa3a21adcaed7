"""Records of a cache: the results for one example as the bytes of safetensors, which hold no code.

A field of several results holds its distinct values, stacked, and the number of the value that each result has.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load, save

from jaxdiff.caching.outcomes import FIELD, Outcomes
from jaxdiff.data.sources import Example
from jaxdiff.errors import expect

INPUTS, COUNTS, WHICH = "/inputs", "/counts", "/which/"
"""Arrays of a record beside those of its fields: hashes of the fields before encoding, `Outcomes.counts`, and for each
field the number of its value in every result."""


@dataclasses.dataclass(frozen=True)
class Distinct:
    """The different values of a field among the results for an example.

    Attributes:
      values: each once, in the order of their first results.
      which: the position of its value for every result.
    """

    values: list[np.ndarray]
    which: list[int]


def distinct(results: Sequence[Example]) -> dict[str, Distinct]:
    """The different values of every field.

    Raises:
      UserError: a value is no array of numbers.
    """
    return {
        name: _distinct(name, [np.asarray(each[name]) for each in results]) for name in sorted(results[0])
    }


def _distinct(name: str, values: Sequence[np.ndarray]) -> Distinct:
    found: dict[bytes, int] = {}
    kept = []
    for value in values:
        fix = "let data.conditions make numbers of it, such as Tokenize, or leave the field out of the source"
        expect(
            value.dtype.kind in "biuf", f"config.data.{name}", str(value.dtype), "an array of numbers", fix
        )
        key = _bytes(value)
        if key not in found:
            found[key] = len(found)
            kept.append(value)
    return Distinct(kept, [found[_bytes(value)] for value in values])


def _bytes(value: np.ndarray) -> bytes:
    return f"{value.dtype} {value.shape}\n".encode() + np.ascontiguousarray(value).tobytes()


def hashes(inputs: Mapping[str, Distinct]) -> np.ndarray:
    """SHA-256 over all values of each field, uint8 [fields, 32], in the order of the fields' names."""
    digests = [hashlib.sha256(b"".join(map(_bytes, inputs[name].values))).digest() for name in sorted(inputs)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def write(inputs: Mapping[str, Distinct], encoded: Mapping[str, Any], counts: Sequence[int]) -> bytes:
    """The record of an example.

    Args:
      inputs: the distinct values of its fields before encoding.
      encoded: for some fields, what networks have made of these values: trees of arrays [values, ...].
      counts: see `Outcomes.counts`.
    """
    arrays = {INPUTS: hashes(inputs), COUNTS: np.asarray(counts, np.int32)}
    for name, each in inputs.items():
        arrays[f"{WHICH}{name}"] = np.asarray(each.which, np.int32)
        tree = encoded.get(name, np.stack(each.values))
        leaves = zip(leaf_names(name, tree), jax.tree.leaves(tree), strict=True)
        arrays |= {leaf: np.ascontiguousarray(array) for leaf, array in leaves}
    return save(arrays)


def inputs_of(record: bytes) -> np.ndarray:
    """The hashes of a record's fields before encoding, see `hashes`."""
    return load(record)[INPUTS]


def read(record: bytes, trees: Mapping[str, Any]) -> Example:
    """The example of a record. What differs between its results is in the field `FIELD`, as `Outcomes`.

    Args:
      trees: for encoded fields, trees of the structure of their values.
    """
    arrays = load(record)
    which = {key.removeprefix(WHICH): arrays[key] for key in arrays if key.startswith(WHICH)}

    def value(name: str, result: int) -> Any:
        tree, position = trees.get(name, 0), int(which[name][result])
        leaves = [arrays[leaf][position] for leaf in leaf_names(name, tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    several = [name for name, numbers in which.items() if numbers.any()]
    example: Any = {name: value(name, 0) for name in which if name not in several}
    if several:
        counts = tuple(arrays[COUNTS].tolist())
        example[FIELD] = Outcomes(lambda result: {name: value(name, result) for name in several}, counts)
    return example


def leaf_names(name: str, tree: Any) -> list[str]:
    """The names of a field's arrays in a record."""
    return [name + jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]
