"""Shared by all commands: flags, readable errors, exit codes. Imports nothing heavy, so that --help is instant."""

import argparse
import errno
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from jaxdiff.config import load
from jaxdiff.config.files import suggest_file
from jaxdiff.config.overrides import override
from jaxdiff.config.suggestions import suggest
from jaxdiff.errors import RunFailure, UserError, printable

FAILURE, USER_ERROR = 1, 2
CLOSED_PIPE = 141
"""As of a program that SIGPIPE ends."""

FULL_DISK, OUT_OF_MEMORY = "No space left on device", "RESOURCE_EXHAUSTED"
"""Parts of the errors of XLA and TensorStore."""

MEMORY = "use a smaller batch, size or network, more accumulation, or more devices (jaxdiff.plan estimates the memory)"
OF_THE_SYSTEM = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE")
}
"""Errors of system calls that a user can mend."""

SYSTEM = "make room or give access there, or use another folder"


class Interrupted(Exception):
    """A run stopped by a signal, with its state saved. `code`: exit status, 75 (try again) or 130 (Ctrl-C)."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError`, and collects ``--config.path=value`` as overrides of the config."""

    def __init__(self, *, description: str, epilog: str = ""):
        super().__init__(
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_no_verify(self) -> None:
        """Add the flag ``--no-verify``, for commands that read checkpoints."""
        self.add_argument(
            "--no-verify",
            action="store_true",
            help="read checkpoints without comparing their checksums first",
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(_in_our_form(message))

    def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
        """The flags, and the overrides of the config as (path, text) pairs."""
        overrides, rest = _split(argv)
        flags, unknown = self.parse_known_args(rest)
        if getattr(flags, "no_verify", False):
            os.environ["JAXDIFF_VERIFY"] = "0"  # for every checkpoint that the command reads
        for word in unknown:
            if not word.startswith("-"):
                raise UserError(f"{word}: expected a flag, got a word that belongs to none. Fix: see --help")
            options = [option for action in self._actions for option in action.option_strings]
            name = word.partition("=")[0]
            raise UserError(
                f"{word}: expected a flag of this command, got {name}. Fix: {suggest(name, options)}"
            )
        return flags, overrides


FLAG = r"argument ([^/:]+)[^:]*: "
ARGPARSE = {
    FLAG + r"invalid (\w+) value: (.*)": r"\1=\3: expected a value of type \2, got \3. Fix: give one",
    FLAG + r"invalid choice: (.*) \(choose from (.*)\)": r"\1=\2: expected one of \3, got \2. Fix: give one",
    FLAG + r"expected .*": r"\1=: expected a value, got none. Fix: \1=VALUE",
    r"the following arguments are required: ([^/,]+).*": r"\1=: expected a value, got none. Fix: give \1",
}
"""Patterns of argparse's messages -> their form here."""


def _in_our_form(message: str) -> str:
    for pattern, form in ARGPARSE.items():
        if match := re.fullmatch(pattern, message):
            return match.expand(form)
    return f"arguments: expected those of --help, got an error: {message}. Fix: see --help"


def _split(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The overrides ``--config.PATH=TEXT`` or ``--config.PATH TEXT`` of a command line, and its other words."""
    overrides, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            rest.append(word)
            continue
        path, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"{word}=: expected a value, got none. Fix: {word}=VALUE")
            text = words.pop(0)
        overrides.append((path, text))
    return overrides, rest


def load_config(path: str | None, overrides: Sequence[tuple[str, str]]) -> Any:
    """The config of a file, with the overrides of the command line."""
    if path is None:
        raise UserError(f"--config=: expected a config, got none. Fix: {suggest_file()}")
    config = load(path)
    for name, text in overrides:
        override(config, name, text)
    return config


def run_and_step(text: str) -> str | tuple[str, int]:
    """The folder of a run, or a folder and the step of a checkpoint: ``folder`` or ``folder:step``.

    A folder whose own name ends so is that folder.
    """
    folder, colon, step = text.rpartition(":")
    is_step = bool(colon) and re.fullmatch("[0-9]+", step) is not None
    return (folder, int(step)) if is_step and not os.path.isdir(os.path.expanduser(text)) else text


def number(text: str) -> float:
    """The finite number that a word denotes; raises `ValueError` for any other word."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"warning: {printable(record.getMessage())}"


def _show_warnings() -> None:
    """Print the warnings of jaxdiff as plain lines; other libraries add their own handlers, with other forms."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logger = logging.getLogger("jaxdiff")
    logger.addHandler(handler)
    logger.propagate = False


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command with the words of `argv`, by default those of the process.

    A user's error is one line and status 2, as is a lack of memory; a table may follow, indented. A failure of a run,
    of its disks or files, is one line and status 1. An interrupted run exits with its own status. With the words of the
    process, nothing is printed after that: threads of libraries that end with the process could follow it with errors
    of their own.
    """
    words = sys.argv[1:] if argv is None else argv
    _show_warnings()
    try:
        main(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)
    except (Exception, KeyboardInterrupt) as error:
        end = _end(error)
        if end is None or (not isinstance(error, Interrupted) and "--debug" in words):
            raise
        print("\n  ".join(map(printable, (end.line, *end.table))), file=sys.stderr, flush=True)
        if argv is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        sys.exit(end.code)
    sys.exit(0)


class _End(NamedTuple):
    """The exit status of a command, its last line, and the rows of a table below it."""

    code: int
    line: str
    table: Sequence[str] = ()


def _end(error: BaseException) -> _End | None:
    """The end of a command with this error; None for a fault of jaxdiff, which keeps its traceback."""
    if isinstance(error, Interrupted):
        return _End(error.code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return _End(128 + signal.SIGINT, "interrupted")
    if isinstance(error, UserError):
        return _End(USER_ERROR, f"error: {error.message}", error.details)
    if isinstance(error, RunFailure):
        return _End(FAILURE, f"error: {error}")
    if FULL_DISK in str(error) and not isinstance(error, OSError):
        error = OSError(errno.ENOSPC, FULL_DISK)
    if isinstance(error, MemoryError) or OUT_OF_MEMORY in str(error):
        return _End(
            USER_ERROR,
            f"error: memory: expected enough for this command, got {_first_line(error)}. Fix: {MEMORY}",
        )
    if isinstance(error, OSError) and error.errno is not None and error.errno in OF_THE_SYSTEM:
        name, reason = error.filename or "disk", os.strerror(error.errno).lower()
        return _End(FAILURE, f"error: {name}: expected a place to read or write, got {reason}. Fix: {SYSTEM}")
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
