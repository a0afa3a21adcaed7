"""Allow-list of the global names in PyTorch's files, with their meanings.

It contains the names that occur in published weights. Most become `Inert` objects; a few construct data, by the
functions of this module. The list serves clear errors as much as safety.
"""

from typing import Any

import numpy as np

from jaxdiff.interop.files import Unreadable
from jaxdiff.interop.torch_tensors import DTYPES, STORAGES, Tensor, tensor_of
from jaxdiff.interop.unpickling import Inert, Name


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """``torch._utils._rebuild_tensor`` and ``_v2``, whose `rest` is (requires_grad, hooks, flags)."""
    if any(isinstance(flags, dict) and (flags.get("conj") or flags.get("neg")) for flags in rest[2:3]):
        raise Unreadable(
            "expected plain tensors, got a conjugate or negative view", "store the tensor after `.clone()`"
        )
    return tensor_of(storage, offset, shape, strides)


def _rebuild_with_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any
) -> Tensor:
    """``torch._utils._rebuild_tensor_v3``, for dtypes without a storage class."""
    if not (isinstance(dtype, Name) and dtype.name in DTYPES):
        raise Unreadable("expected tensors of a known dtype, got another dtype")
    return tensor_of(storage, offset, shape, strides, np.dtype(DTYPES[dtype.name]))


# None of these functions copies its argument: a file could repeat the call at a cost of three bytes each.


def _same(value: Any, *_: Any) -> Any:
    """A parameter becomes its tensor, a set the list of its elements, a ``torch.Size`` a tuple."""
    return value


def _dict() -> dict[Any, Any]:
    return {}


def _default_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _persistent_object(meta: Any) -> Inert:
    """An object of EDM's persistence: only the name of its class and its state; its source code stays text."""
    if not (isinstance(meta, dict) and isinstance(meta.get("class_name"), str)):
        raise TypeError("a persistent object without a class")
    return Inert(Name("persistent", meta["class_name"]), (), meta.get("state"))


_CONSTRUCTED = {
    ("collections", "OrderedDict"): _dict,
    ("collections", "defaultdict"): _default_dict,
    ("builtins", "set"): _same,
    ("__builtin__", "set"): _same,
    ("dnnlib.util", "EasyDict"): _dict,
    ("torch", "Size"): _same,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_with_dtype,
    ("torch._utils", "_rebuild_parameter"): _same,
    ("torch._utils", "_rebuild_parameter_with_state"): _same,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
}

_INERT = {
    "_codecs": "encode",
    "__builtin__": "dict int list long",
    "argparse": "Namespace",
    "builtins": "dict int list",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode",
    "pytorch_lightning.callbacks.early_stopping": "EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint",
    "torch": " ".join(DTYPES) + " device",
    "torch.nn.modules.activation": "GELU LeakyReLU MultiheadAttention ReLU SiLU Sigmoid Softmax Tanh",
    "torch.nn.modules.batchnorm": "BatchNorm1d BatchNorm2d",
    "torch.nn.modules.container": "ModuleDict ModuleList ParameterDict ParameterList Sequential",
    "torch.nn.modules.conv": "Conv1d Conv2d Conv3d ConvTranspose2d",
    "torch.nn.modules.dropout": "Dropout Dropout2d",
    "torch.nn.modules.linear": "Identity Linear NonDynamicallyQuantizableLinear",
    "torch.nn.modules.module": "Module",
    "torch.nn.modules.normalization": "GroupNorm LayerNorm",
    "torch.nn.modules.padding": "ReflectionPad2d ZeroPad2d",
    "torch.nn.modules.pooling": "AdaptiveAvgPool2d AvgPool2d MaxPool2d",
    "torch.nn.modules.sparse": "Embedding",
    "torch.nn.modules.upsampling": "Upsample",
    "typing": "Any",
}

STORAGE_NAMES = {
    (module, name): Name(module, name)
    for module in ("torch", "torch.cuda", "torch.storage")
    for name in STORAGES
}
"""Classes of storages, the only names in a separately pickled storage."""

KNOWN = (
    {(module, name): Name(module, name) for module, names in _INERT.items() for name in names.split()}
    | STORAGE_NAMES
    | {(module, name): Name(module, name, make) for (module, name), make in _CONSTRUCTED.items()}
)
"""All allowed names."""
