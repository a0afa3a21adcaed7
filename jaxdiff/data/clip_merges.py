"""CLIP's published vocabulary, which ships with jaxdiff: single files of Stable Diffusion hold no tokenizer.

Byte pairs of Radford et al. 2021; their licence stands in ``clip_merges.LICENSE``. All published text encoders of
Stable Diffusion have this vocabulary, and differ in their padding only.
"""

import gzip
import importlib.resources
import json
import pathlib

from jaxdiff.data.tokenizer_files import BEGIN, END

SIZE = 49_408
"""Tokens: 256 bytes, as many that end a word, 48,894 merged pairs, begin and end."""

VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""Bytes that stand for themselves in a vocabulary; all others are written as characters from 256 on."""


def write_clip_tokenizer(folder: pathlib.Path, pad: str = END) -> None:
    """Make `folder` a tokenizer with CLIP's vocabulary, in the files of transformers.

    Args:
      folder: the new folder.
      pad: the token that fills up a text.
    """
    merges = _merges()
    tokens = vocabulary(merges)
    roles = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **roles}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def vocabulary(merges: list[str]) -> list[str]:
    """All tokens in the order of their ids: bytes, bytes that end a word, merged pairs, begin and end."""
    hidden = len(set(range(256)) - set(VISIBLE))
    letters = [chr(code) for code in (*VISIBLE, *range(256, 256 + hidden))]
    ends = [f"{letter}</w>" for letter in letters]
    return [*letters, *ends, *(merge.replace(" ", "") for merge in merges), BEGIN, END]


def _merges() -> list[str]:
    """The pairs ``first second`` in the order in which they are merged."""
    file = importlib.resources.files("jaxdiff.data") / "clip_merges.txt.gz"
    return gzip.decompress(file.read_bytes()).decode().splitlines()
