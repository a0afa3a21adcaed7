"""Controls from the command line: ControlNets and adapters, each a file with a name and a scale."""

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxdiff.cli import values
from jaxdiff.errors import UserError
from jaxdiff.generation import controls
from jaxdiff.generation.generator import Generator
from jaxdiff.interop.lora.flag import parse_flag

Add = Callable[..., Any]


def with_controls(generator: Generator, flags: argparse.Namespace) -> Generator:
    """The generator with the controls of ``--control-net``, ``--t2i-adapter`` and ``--ip-adapter``, in this order.

    Raises:
      UserError: a word is no NAME=FILE[:SCALE], or a file is no such control for the model.
    """
    for flag, words, add in _given(flags):
        for name, text in values.pairs(flag, words):
            file, scale = parse_flag(text, flag)
            with _of_this_model(flag, f"{name}={file}"):
                generator = add(generator, name, file, scale=scale)
    return generator


@contextlib.contextmanager
def _of_this_model(flag: str, value: str) -> Iterator[None]:
    """Turns a table of tensors that differ into an error about the flag."""
    try:
        yield
    except UserError as error:
        if not error.details:
            raise
        raise UserError(
            f"{flag}={value}: expected a file that was made for this model, got other tensors. "
            "Fix: use the model that it was made for",
            error.details,
        ) from error


def _given(flags: argparse.Namespace) -> Sequence[tuple[str, list[str], Add]]:
    encoder: Mapping[str, Any] = {"image_encoder": flags.image_encoder}
    if flags.ip_adapter and flags.image_encoder is None:
        raise UserError(
            f"--ip-adapter={flags.ip_adapter[0]}: expected --image-encoder as well, got none. "
            "Fix: give the file or folder of CLIP's image encoder that the adapter was trained with"
        )
    return (
        ("--control-net", flags.control_net, controls.with_control_net),
        ("--t2i-adapter", flags.t2i_adapter, controls.with_t2i_adapter),
        ("--ip-adapter", flags.ip_adapter, functools.partial(controls.with_ip_adapter, **encoder)),
    )
