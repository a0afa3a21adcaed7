"""InceptionV3 of the FID in the names of pytorch-fid and torch-fidelity, which ship one and the same file.

>>> outputs = InceptionV3().apply({"params": inception_params(tensors)}, pixels)
"""

from collections.abc import Iterator

import flax.linen as nn
import jax
import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop.mapping import CONV, DENSE, SAME, Entry, Tensors, to_params, to_tensors
from jaxdiff.models.inception import SIZE, InceptionV3
from jaxdiff.typing import Params

FIRST, CLASSES = "Conv2d_1a_3x3.conv.weight", "fc.weight"
"""The first tensor, by which the network is known, and the last."""

BUFFERS = ("num_batches_tracked",)

STEM = (
    ("stem_0/only", ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")),
    (
        "stem_1/only",
        ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    ),
)

ONE, POOLED = {"one_0": "branch1x1"}, {"pooled_0": "branch_pool"}


def _chain(ours: str, theirs: str, count: int) -> dict[str, str]:
    return {f"{ours}_{i}": f"{theirs}_{i + 1}" for i in range(count)}


_35 = ONE | _chain("five", "branch5x5", 2) | _chain("double", "branch3x3dbl", 3) | POOLED
_17 = ONE | _chain("seven", "branch7x7", 3) | _chain("double", "branch7x7dbl", 5) | POOLED
_8 = ONE | POOLED | {
    "three_0": "branch3x3_1", "three_last_0": "branch3x3_2a", "three_last_1": "branch3x3_2b",
    "double_0": "branch3x3dbl_1", "double_1": "branch3x3dbl_2",
    "double_last_0": "branch3x3dbl_3a", "double_last_1": "branch3x3dbl_3b",
}  # fmt: skip

BLOCKS = {
    "mixed_0": ("Mixed_5b", _35),
    "mixed_1": ("Mixed_5c", _35),
    "mixed_2": ("Mixed_5d", _35),
    "mixed_3": ("Mixed_6a", {"three_0": "branch3x3"} | _chain("double", "branch3x3dbl", 3)),
    "mixed_4": ("Mixed_6b", _17),
    "mixed_5": ("Mixed_6c", _17),
    "mixed_6": ("Mixed_6d", _17),
    "mixed_7": ("Mixed_6e", _17),
    "mixed_8": ("Mixed_7a", _chain("three", "branch3x3", 2) | _chain("seven", "branch7x7x3", 4)),
    "mixed_9": ("Mixed_7b", _8),
    "mixed_10": ("Mixed_7c", _8),
}
"""Our block: its name in the files, and the names of its convolutions there."""


def inception_params(tensors: Tensors) -> Params:
    """The parameters of `InceptionV3`, float32.

    Raises:
      UserError: the names are those of another network; or lists every tensor that is missing, unexpected or of another
        shape, such as those of torchvision's network with 1000 classes.
    """
    if FIRST not in tensors:
        shown = ", ".join(sorted(tensors)[:4]) or "none"
        raise UserError(
            f"tensors: expected those of InceptionV3, {FIRST} among them, got {shown}. "
            "Fix: give pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or the same file of torch-fidelity"
        )
    return to_params(entries(), tensors, parameter_shapes(), BUFFERS)


def inception_tensors(params: Params) -> dict[str, np.ndarray]:
    """A file's tensors from the network's parameters: the inverse of `inception_params`."""
    return to_tensors(entries(), params)


def parameter_shapes() -> Params:
    """The shapes of the network's parameters."""
    pixels = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.float32)
    return nn.meta.unbox(jax.eval_shape(InceptionV3().init, jax.random.key(0), pixels))["params"]


def entries() -> Iterator[Entry]:
    """The mapping of all parameters."""
    for ours, names in STEM:
        for i, theirs in enumerate(names):
            yield from convolution(f"{ours}_{i}", theirs)
    for block, (theirs, branches) in BLOCKS.items():
        for ours, branch in branches.items():
            yield from convolution(f"{block}/{ours}", f"{theirs}.{branch}")
    yield Entry("classes/kernel", (CLASSES,), DENSE)
    yield Entry("classes_bias", ("fc.bias",), SAME)


def convolution(ours: str, theirs: str) -> Iterator[Entry]:
    """A convolution with its batch norm."""
    yield Entry(f"{ours}/conv/kernel", (f"{theirs}.conv.weight",), CONV)
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    for kind, name in names.items():
        yield Entry(f"{ours}/norm/{kind}", (f"{theirs}.bn.{name}",), SAME)
