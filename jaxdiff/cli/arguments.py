"""Errors about the arguments of a `Generator`, in the words of the command line."""

import argparse
import contextlib
import re
from collections.abc import Iterator

from jaxdiff.cli.request import flag_of
from jaxdiff.errors import UserError

FLAGS = {
    "image_size": "size", "size": "size", "noise": "noise", "steps": "steps", "guidance": "guidance", "seed": "seed",
    "strength": "strength", "mask": "mask", "known": "known", "negative": "negative", "n": "n", "images": "edit",
    "before": "source", "guiding_model": "guiding_model", "levels": "level", "level": "level",
    "cascade_field": "cascade_field", "label": "label", "text": "text",
}  # fmt: skip
"""An argument in Python -> the name of the flag that gives it."""

PAIRED = ("known", "mask")
"""Flags that an error may ask for, though they were not given."""


@contextlib.contextmanager
def naming_flags(flags: argparse.Namespace) -> Iterator[None]:
    """Let errors about an argument of a `Generator` name the flag that the user has typed for it."""
    try:
        yield
    except UserError as error:
        raise UserError(_in_flags(error.message, flags), error.details) from error


def _in_flags(message: str, flags: argparse.Namespace) -> str:
    name = re.split(r"[^a-z_]", message, maxsplit=1)[0]
    flag = FLAGS.get(name)
    if flag is not None and (flag in PAIRED or getattr(flags, flag) not in (None, [])):
        message = flag_of(flag) + message.removeprefix(name)
    return re.sub(r"(?<![-\w])image_size\b", "--size", message)
