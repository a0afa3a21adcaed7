"""Files of weights that feature spaces are made of: their hashes, and whether they are the published ones."""

import hashlib
import logging
import pathlib

from jaxdiff.errors import UserError, expect
from jaxdiff.interop import folders
from jaxdiff.interop.files import reading

_log = logging.getLogger(__name__)

KNOWN = {
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": (
        "pt_inception-2015-12-05 of pytorch-fid and torch-fidelity"
    )
}
"""SHA-256 of published files, and what they are."""

FEWEST_DIGITS = 8
"""Of a hash that a user gives: a prefix suffices."""

_CHUNK = 1 << 22


def file_hash(path: str) -> str:
    """SHA-256 of a file of weights in 64 digits; of the weights in a folder of transformers.

    Raises:
      UserError: there is no such file.
    """
    given = pathlib.Path(path).expanduser()
    digest = hashlib.sha256()
    with reading(given):
        for file in _files(given):
            with file.open("rb") as opened:
                while chunk := opened.read(_CHUNK):
                    digest.update(chunk)
    return digest.hexdigest()


def _files(given: pathlib.Path) -> list[pathlib.Path]:
    """The file, or those in a folder that hold the weights."""
    file = folders.weights_file(given, None) if given.is_dir() else given
    if file.name.endswith(".index.json"):
        return [file.with_name(name) for name in sorted(folders.shards(file))]
    return [file]


def checked_hash(path: str, sha256: str | None, needs_known: bool = False) -> str:
    """The hash of a file of weights, which is logged.

    Args:
      path: of the file or folder.
      sha256: the hash that it must have, or its first digits; None for any.
      needs_known: without `sha256`, refuse files that `KNOWN` does not list.

    Raises:
      UserError: the file has another hash, or is not known.
    """
    found = file_hash(path)
    if sha256 is not None:
        fix = "give the file that was meant, or its hash"
        expect(found.startswith(sha256), "sha256", sha256, f"the hash of {path}", fix, found)
    elif needs_known and found not in KNOWN:
        raise UserError(
            f"weights={path!r}: expected {' or '.join(KNOWN.values())}, got a file with the SHA-256 {found}. Fix: give "
            f"that file; or sha256={found[:FEWEST_DIGITS]!r} to use this one under another name than FID"
        )
    _log.info("%s: sha256 %s, %s", path, found, KNOWN.get(found, "no file that jaxdiff knows"))
    return found


def check_sha256(sha256: str | None) -> None:
    """Raise `UserError` unless this can be the beginning of a hash, or None."""
    digits = sha256 is None or (FEWEST_DIGITS <= len(sha256) <= 64 and set(sha256) <= set("0123456789abcdef"))
    expected = f"{FEWEST_DIGITS} to 64 hexadecimal digits in small letters"
    expect(digits, "sha256", sha256, expected, "give the beginning of the file's SHA-256")


def is_known(sha256: str | None) -> bool:
    """Whether these first digits are those of a file in `KNOWN`; None, which only known files pass, too."""
    return sha256 is None or any(known.startswith(sha256) for known in KNOWN)
