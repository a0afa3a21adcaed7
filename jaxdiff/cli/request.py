"""A sampling request: the parsed and validated command line of `jaxdiff.sample`. Imports nothing heavy."""

import argparse
import dataclasses
import re
from collections.abc import Sequence

from jaxdiff.cli import output
from jaxdiff.cli.app import number, run_and_step
from jaxdiff.cli.checkpoints import step_of
from jaxdiff.errors import UserError, expect
from jaxdiff.interop.lora.flag import parse_flag

HANDOVER = 0.8
"""The fraction of the steps after which a refiner continues, as published."""

STRENGTH = 0.6
"""The fraction of the steps that an edit takes."""

NEEDS = {"strength": "edit", "source": "edit", "cascade_field": "cascade", "image_encoder": "ip_adapter"}
"""A flag -> the one without which it has no effect."""

NOT_WITH_REFINER = ("known", "mask", "edit", "source", "level", "guiding_model")
"""Flags that a base model with a refiner has no use for."""

NOT_IN_CASCADES = (
    "refiner",
    "control_net",
    "t2i_adapter",
    "ip_adapter",
    "step",
    "size",
    "noise",
    "guiding_model",
    "known",
    "mask",
    "edit",
    "negative",
)
"""Flags that a cascade has no use for."""

NOT_IN_STAGES = (*(name for name in NOT_IN_CASCADES if name not in ("noise", "negative")), "cascade", "source", "lora",
                 "sampler")  # fmt: skip
"""Flags that a run of several stages has no use for."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A sampling request.

    Attributes:
      flags: the flags.
      out: the file or folder of the output.
      runs: the folders of the training runs, each with the step of its checkpoint (None: the newest).
      overrides: (path, text) pairs that change the stored configs.
      packages: packages whose classes the stored configs may use.
      loras: LoRA files, each with its scale.
    """

    flags: argparse.Namespace
    out: output.Output
    runs: Sequence[tuple[str, int | None]]
    overrides: Sequence[tuple[str, str]]
    packages: Sequence[str]
    loras: Sequence[tuple[str, float]] = ()

    @property
    def guiding_model(self) -> str | tuple[str, int] | None:
        """The run of the guiding model, perhaps with a step."""
        text = self.flags.guiding_model
        return None if text is None else run_and_step(text)

    @property
    def refiner(self) -> tuple[str, float] | None:
        """The run of the refiner, and the fraction of the steps after which it continues."""
        text = self.flags.refiner
        if text is None:
            return None
        folder, colon, last = text.rpartition(":")
        try:
            fraction = number(last) if colon else None
        except ValueError:
            fraction = None
        if fraction is None:
            return text, HANDOVER
        fix = "give FOLDER:0.8"
        expect(0 < fraction < 1, "--refiner", text, "a fraction of the steps in (0, 1)", fix, last)
        return folder, fraction

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images, if ``--size`` gives them."""
        return _size(self.flags.size)


def of(flags: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> Request:
    """The request of parsed flags.

    Raises:
      UserError: flags that exclude each other, an output that cannot be written.
    """
    out = output.of_images("--out", flags.out, flags.overwrite)
    out.check()
    expect(
        flags.n is None or 0 < flags.n < 2**32,
        "--n",
        flags.n,
        "1 to 4,294,967,295 images",
        "give such a number",
    )
    expect(0 <= flags.seed < 2**32, "--seed", flags.seed, "a 32-bit whole number", "give 0 to 4294967295")
    if flags.strength is not None:
        expected = "a fraction of the steps in (0, 1]"
        expect(0 < flags.strength <= 1, "--strength", flags.strength, expected, f"try {STRENGTH}")
    _check_needed(flags)
    _size(flags.size)
    _check_numbers("--guidance", [] if flags.guidance is None else [flags.guidance])
    _check_numbers("--level", [word for word in flags.level if "=" in word])
    packages = [name for name in flags.packages.split(",") if name]
    steps = [] if by_stage(flags) or flags.steps is None else [("sampling.steps", str(_count(flags.steps)))]
    if flags.refiner is not None:
        _ = Request(flags, out, (), (), ()).refiner  # its fraction
    loras = [parse_flag(text) for text in flags.lora]
    return Request(flags, out, runs(flags), [*overrides, *steps], packages, loras)


def by_stage(flags: argparse.Namespace) -> bool:
    """Whether ``--steps`` or ``--noise`` name stages."""
    noises = [word for word in flags.noise if _name(word)]
    return bool(noises) or "=" in (flags.steps or "")


def named(flag: str, words: Sequence[str]) -> dict[str, str]:
    """The values of words ``NAME=VALUE``, each name once.

    Raises:
      UserError: a word has no name, or a name has two values.
    """
    found: dict[str, str] = {}
    for word in words:
        name = _name(word)
        fix = f"write {flag} NAME=VALUE, once for each stage"
        expect(bool(name) and name not in found, flag, word, "the name of a stage, once", fix)
        found[name] = word[len(name) + 1 :]
    return found


def steps_of(flags: argparse.Namespace) -> int | dict[str, int] | None:
    """``--steps``: a number for every stage, or one for each of some stages."""
    if flags.steps is None or "=" not in flags.steps:
        return None if flags.steps is None else _count(flags.steps)
    words = named("--steps", flags.steps.split(","))
    return {name: _count(text, f"--steps {name}") for name, text in words.items()}


def _name(word: str) -> str:
    """NAME in ``NAME=VALUE``, perhaps with dots; empty without one."""
    found = re.match(r"([A-Za-z_][A-Za-z0-9_.]*)=", word)
    return found[1] if found else ""


def _count(text: str, flag: str = "--steps") -> int:
    """A number of steps."""
    whole = re.fullmatch(r"[0-9]{1,9}", text.strip()) is not None and int(text) > 0
    expect(whole, flag, text, "a whole number > 0", "give one, such as 50")
    return int(text)


def runs(flags: argparse.Namespace) -> list[tuple[str, int | None]]:
    """The runs of ``--workdir`` or ``--cascade``, each with the step of its checkpoint (None: the newest)."""
    if flags.refiner is not None:
        check_unused(flags, NOT_WITH_REFINER, "a flag for a base model and its refiner")
    if flags.cascade is None:
        if flags.workdir is None:
            raise UserError(
                "--workdir=: expected a run, got none. Fix: give the folder of a training run, or --cascade"
            )
        return [(flags.workdir, step_of(flags.step, flags.workdir))]
    if flags.workdir is not None:
        raise UserError(
            f"--workdir={flags.workdir!r}: expected either --workdir or --cascade, got both. Fix: leave one out"
        )
    check_unused(flags, NOT_IN_CASCADES, "a flag for cascades")
    named = [run_and_step(folder) for folder in flags.cascade.split(",")]
    return [run if isinstance(run, tuple) else (run, None) for run in named]


def _check_needed(flags: argparse.Namespace) -> None:
    """Raise `UserError` for a flag without the one that it needs."""
    for name, other in NEEDS.items():
        value, fix = getattr(flags, name), f"give {flag_of(other)}, or leave it out"
        given = value not in (None, []) and getattr(flags, other) in (None, [])
        expect(not given, flag_of(name), value, f"{flag_of(other)} as well", fix, "none")


def flag_of(name: str) -> str:
    """The flag of a name in the parsed flags."""
    return f"--{name.replace('_', '-')}"


def check_unused(flags: argparse.Namespace, names: Sequence[str], expected: str) -> None:
    """Raise `UserError` if one of these flags is given; they are those of a single model."""
    for name in names:
        value = getattr(flags, name)
        if value not in (None, []):
            raise UserError(
                f"{flag_of(name)}={value!r}: expected {expected}, got one for a single model. Fix: leave it out"
            )


def _check_numbers(flag: str, texts: Sequence[str]) -> None:
    """Raise `UserError` unless each word is a finite number, or NAME=NUMBER,... with these."""
    for part in (part for text in texts for part in text.split(",")):
        name, equals, value = part.rpartition("=")
        try:
            number(value)
        except ValueError:
            field, what = (f"{flag} {name}", "number") if equals else (flag, "scale")
            raise UserError(
                f"{field}={value}: expected a {what}, finite, got {value!r}. Fix: give one, such as 1.5"
            ) from None


def _size(text: str | None) -> tuple[int, int] | None:
    """Height and width: ``96x128``."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text.lower())
    if found is None or 0 in (sides := (int(found[1]), int(found[2]))):
        raise UserError(f"--size={text}: expected HEIGHTxWIDTH, got {text!r}. Fix: write 96x128")
    return sides
