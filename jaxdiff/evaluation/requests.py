"""Requests: the conditions under which samples are generated, and real images to compare them with."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from jaxdiff.errors import expect
from jaxdiff.evaluation.protocols import EvaluationInputs, Fields


class Requests(NamedTuple):
    """The conditions of all samples.

    Attributes:
      inputs: the model and its data.
      labels: requested class of each sample; all 0 without classes.
      rows: position of the test example whose conditions each sample has; None where the class is the only condition.
    """

    inputs: EvaluationInputs
    labels: Integer[np.ndarray, "n"]
    rows: Integer[np.ndarray, "n"] | None

    @classmethod
    def make(
        cls,
        inputs: EvaluationInputs,
        n: int,
        train_labels: Integer[np.ndarray, "m"],
        test_labels: Integer[np.ndarray, "k"],
    ) -> "Requests":
        """Request each class in turn if the label is the only condition, else the conditions of test examples.

        Raises:
          UserError: n is too small for two samples of each class.
        """
        if inputs.label is not None and inputs.conditions == (inputs.label,):
            classes = np.unique(train_labels)
            least = 2 * len(classes)
            expect(n >= least, "samples", n, f"at least {least}, two of each class", "request more samples")
            # 0, 1, ..., 0, 1, ..., so that every prefix is balanced too.
            return cls(inputs, classes[np.arange(n) % len(classes)], None)
        rows = np.arange(n) % len(inputs.test)
        return cls(inputs, test_labels[rows], rows)

    def batch(self, index: Integer[np.ndarray, "b"]) -> tuple[dict[str, Any], Fields]:
        """The conditions of these samples, and all fields of their test examples."""
        if self.rows is None:
            conditions = {str(self.inputs.label): self.labels[index]}
            return conditions, conditions
        fields = self.inputs.test.rows(self.rows[index])
        return conditions_of(self.inputs, fields), fields


def label_of(inputs: EvaluationInputs) -> str | None:
    """Name of the class label, if the model requires one."""
    return inputs.label if inputs.label in inputs.conditions else None


def conditions_of(inputs: EvaluationInputs, fields: Fields) -> dict[str, Any]:
    """The model's conditions among the fields of test examples; without conditions, the number of examples.

    Raises:
      UserError: the test examples lack one.
    """
    for name in inputs.conditions:
        fix = "let test_data.conditions compute it"
        expect(
            name in fields, name, None, "a field of the test examples", fix, f"the fields {sorted(fields)}"
        )
    return {name: fields[name] for name in inputs.conditions} or {"n": len(fields["image"])}


def matching(
    labels: Integer[np.ndarray, "n"], real_labels: Integer[np.ndarray, "m"], seed: int
) -> Integer[np.ndarray, "n"]:
    """For each label the position of a random real image of that class, each used once; -1 where there are no more."""
    generator = np.random.default_rng(seed)
    chosen = np.full(len(labels), -1)
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        pool = generator.permutation(np.flatnonzero(real_labels == label))[: len(positions)]
        chosen[positions[: len(pool)]] = pool
    return chosen
