"""Files of published tokenizers: reading the folders of CLIP's and T5's.

The tokenizers are built as transformers builds them, whose rules for tokens with a role (begin, end, padding) are
spread over several files.
"""

import contextlib
import functools
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from jaxdiff.data.text_files import lines, read_json, read_text
from jaxdiff.errors import UserError, expect

FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files of a tokenizer. A folder has some of them, and these are enough for a copy of the tokenizer."""

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
"""CLIP's names of the begin and the end, unless a folder names others."""

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP takes for a word: English endings, letters, a single digit, or other signs (Radford et al. 2021)."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Vocabulary(NamedTuple):
    """A tokenizer of the library `tokenizers`, and its ids with a role; T5 has no begin."""

    tokenizer: tokenizers.Tokenizer
    begin: int | None
    end: int
    pad: int


@functools.lru_cache(maxsize=8)
def clip_vocabulary(folder: str) -> Vocabulary:
    """Read CLIP's tokenizer from a folder.

    Raises:
      UserError: files are missing or malformed.
    """
    path = pathlib.Path(folder)
    vocabulary, merges = _byte_pairs(path)
    roles = _roles(path, {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END})
    options = {"end_of_word_suffix": "</w>", "unk_token": _content(roles["unk_token"])}
    with _refusing(path):
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **options))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add(tokenizer, path, roles)
    begin, end, pad = (_id(tokenizer, roles[role], path) for role in ("bos_token", "eos_token", "pad_token"))
    return Vocabulary(tokenizer, begin, end, pad)


@functools.lru_cache(maxsize=8)
def t5_vocabulary(folder: str) -> Vocabulary:
    """Read T5's tokenizer from a folder.

    Raises:
      UserError: files are missing or malformed.
    """
    path = pathlib.Path(folder)
    fix = "give the tokenizer folder of a model with T5"
    if (path / "spiece.model").exists():
        fix = (
            "write it once where transformers is installed: "
            "transformers.T5Tokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    if not (path / "tokenizer.json").exists():
        raise UserError(f"tokenizer={folder!r}: expected tokenizer.json in it, got no such file. Fix: {fix}")
    with _refusing(path):
        tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    roles = _roles(path, {"eos_token": "</s>", "pad_token": "<pad>"})
    end, pad = (_id(tokenizer, roles[role], path) for role in ("eos_token", "pad_token"))
    return Vocabulary(tokenizer, None, end, pad)


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> None:
    """Make `target` a folder with the files of the tokenizer in `source`."""
    target.mkdir()
    for name in FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


@contextlib.contextmanager
def _refusing(path: pathlib.Path) -> Iterator[None]:
    """Turn every failure of the library, which raises plain exceptions, into a `UserError` with the folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"tokenizer={str(path)!r}: expected files of a tokenizer, got {error}. Fix: download them again"
        ) from error


def _byte_pairs(path: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The ids of tokens, and the pairs that are merged, in this order."""
    if (path / "tokenizer.json").exists():
        model = _json(path / "tokenizer.json").get("model", {})
        given, pairs = model.get("vocab"), model.get("merges")
    elif (path / "vocab.json").exists() and (path / "merges.txt").exists():
        given = _json(path / "vocab.json")
        written = lines(read_text(path / "merges.txt", f"tokenizer={str(path)!r}"))
        pairs = [line for line in map(str.strip, written) if line and not line.startswith("#version")]
    else:
        raise UserError(
            f"tokenizer={str(path)!r}: expected vocab.json and merges.txt, or tokenizer.json, got neither. "
            "Fix: give the tokenizer folder of a Stable Diffusion model"
        )
    with _refusing(path):
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs or ()]
        return dict(given), [(first, second) for first, second in merges]


def _json(file: pathlib.Path) -> dict[str, Any]:
    """The object in a file; empty if there is no such file."""
    if not file.exists():
        return {}
    where = f"tokenizer={str(file)!r}"
    found = read_json(read_text(file, where), where, "download it again")
    expect(
        isinstance(found, dict), "tokenizer", str(file), "a JSON object", "download it again", "another value"
    )
    return found


def _roles(path: pathlib.Path, defaults: Mapping[str, str]) -> dict[str, Any]:
    """The tokens with a role, each a text or the object of an added token.

    ``special_tokens_map.json`` goes before ``tokenizer_config.json``, unless that one lists its added tokens.
    """
    config = _json(path / "tokenizer_config.json")
    first = {} if "added_tokens_decoder" in config else _json(path / "special_tokens_map.json")
    return {role: first.get(role) or config.get(role) or default for role, default in defaults.items()}


def _declared(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """Ids and tokens that the files add to the vocabulary."""
    config = _json(path / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        yield from ((int(index), token) for index, token in config["added_tokens_decoder"].items())
        return
    yield from ((index, token) for token, index in _json(path / "added_tokens.json").items())
    for token in _json(path / "tokenizer.json").get("added_tokens", ()):
        yield token["id"], token


def _add(tokenizer: tokenizers.Tokenizer, path: pathlib.Path, roles: Mapping[str, Any]) -> None:
    """Add the files' tokens and those with a role, which a text can then contain as a whole.

    So "!" is its own token where it is the padding, as in transformers.
    """
    with _refusing(path):
        declared = sorted(_declared(path), key=lambda item: item[0])
        names = {_content(token) for _, token in declared}
        special = {_content(token) for token in roles.values()}
        for index, token in declared:
            flags = {} if isinstance(token, dict) else {"special": token in special}
            tokenizer.add_tokens([_added(token, **flags)])
            found = tokenizer.token_to_id(_content(token))
            if found != index:
                raise ValueError(f"id {index} of {_content(token)!r}, which would be {found}")
        left = [token for token in roles.values() if _content(token) not in names]
        tokenizer.add_special_tokens([_added(token) for token in left])


def _added(token: Any, **flags: bool) -> tokenizers.AddedToken:
    given = {name: token[name] for name in _FLAGS if name in token} if isinstance(token, dict) else {}
    return tokenizers.AddedToken(_content(token), **(given | flags))


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _id(tokenizer: tokenizers.Tokenizer, token: Any, path: pathlib.Path) -> int:
    found = tokenizer.token_to_id(_content(token))
    if found is None:
        raise UserError(
            f"tokenizer={str(path)!r}: expected {_content(token)!r} in its vocabulary, got no such token. "
            "Fix: download its files again"
        )
    return found
