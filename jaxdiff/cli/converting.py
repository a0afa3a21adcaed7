"""Conversion of published models whose files say what they are, from the command line."""

import pathlib
from collections.abc import Sequence
from typing import Any

from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from jaxdiff.interop import published
from jaxdiff.interop import unclip as unclip_files
from jaxdiff.interop.lora.flag import parse_flag
from jaxdiff.runs import published as runs
from jaxdiff.runs import published_unclip

UNUSED = ("lora", "prediction", "tokenizer", "weights")
"""Flags without effect on a model of unCLIP."""


def stable_diffusion(flags: Any, overrides: Sequence[tuple[str, str]], ema: bool | None) -> str:
    """``--from`` a model of Stable Diffusion, or its U-Net with ``--base``; returns a summary for the user."""
    runtime.start()
    model = published.find(pathlib.Path(flags.source).expanduser(), ema)
    if flags.base is not None:
        return runs.convert_unet(model, flags.base, flags.workdir)
    prediction = {None: None, "epsilon": "epsilon", "v": "v_prediction"}[flags.prediction]
    loras = [parse_flag(text) for text in flags.lora]
    return runs.convert(model, flags.workdir, flags.tokenizer, prediction, overrides, loras)


def unclip(flags: Any, overrides: Sequence[tuple[str, str]]) -> str:
    """``--from`` a folder of Karlo or of Stable unCLIP; returns a summary for the user.

    Raises:
      UserError: a flag has no effect.
    """
    for name in UNUSED:
        if getattr(flags, name):
            raise UserError(f"--{name}=: expected flags that unCLIP uses, got --{name}. Fix: leave it out")
    runtime.start()
    model = unclip_files.find(pathlib.Path(flags.source).expanduser())
    return published_unclip.convert(model, flags.workdir, overrides)
