"""Shared by all commands: flags, readable errors, exit codes. Imports nothing heavy, so that --help is instant."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxdiff.config import load
from jaxdiff.config.files import suggest_file
from jaxdiff.config.overrides import override
from jaxdiff.config.suggestions import suggest
from jaxdiff.errors import RunFailure, UserError

FAILURE, USER_ERROR = 1, 2


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
    """The folder of a run, or a folder and the step of a checkpoint: ``folder`` or ``folder:step``."""
    folder, colon, step = text.rpartition(":")
    return (folder, int(step)) if colon and step.isdigit() else text


def _show_warnings() -> None:
    """Print the warnings of jaxdiff as plain lines; other libraries add their own handlers, with other forms."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logger = logging.getLogger("jaxdiff")
    logger.addHandler(handler)
    logger.propagate = False


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command with the words of `argv`, by default those of the process.

    A user's error is one line and status 2; an interrupted run exits with its own status.
    """
    words = sys.argv[1:] if argv is None else argv
    _show_warnings()
    try:
        main(words)
    except UserError as error:
        if "--debug" in words:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except RunFailure as error:
        if "--debug" in words:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILURE)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.code)
    sys.exit(0)
