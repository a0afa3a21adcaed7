"""Texts of the command line mean what they say: strings to the byte, files with colons, and only finite numbers."""

import dataclasses
import math

import pytest

from jaxdiff.cli.app import run_and_step
from jaxdiff.config import build, load, spec
from jaxdiff.config.files import file_and_variant
from jaxdiff.config.overrides import override
from jaxdiff.errors import UserError, between, finite, positive

HERE = __name__


@dataclasses.dataclass(frozen=True)
class Source:
    path: str = ""
    inner: "Source | None" = None
    scale: float = 1.0
    bound: float = math.inf
    rates: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reader:
    source: Source = Source()
    note: str = ""


STRINGS = [
    "/data/12:30/x",
    "host:port",
    "s3://bucket/a.b:c",
    "a b  c",
    "it's",
    'say "a:b"',
    "ü/日本:語",
    "C:\\x:y",
    "a.b:C(d=e:F)",
    "line\u2028:separator\x85x:y",
]


@pytest.mark.parametrize("text", STRINGS)
def test_a_string_in_a_value_stays_to_the_byte(text):
    config = spec(Reader)
    override(config, "source", f"{HERE}:Source(path={text!r}, inner={HERE}:Source(path={text!r}))")
    assert build(config).source == Source(text, Source(text))
    for path in ("note", "source.path"):
        override(config, path, text)
    assert (build(config).note, build(config).source.path) == (text, text)


PATHS = ["", ".", "..", "note.", ".note", "source..path", "source[=1]", "source[x]", "[0]", "source[²]", "source[0",
         "source.rates[0]x", f"source.rates[{'9' * 5000}]"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_path_is_one_line(path):
    with pytest.raises(
        UserError, match=r"^--config\.[^\n]*: expected a field of the config, got [^\n]* Fix: "
    ):
        override(spec(Reader), path, "5")


@pytest.mark.parametrize("field", ["source", "source.rates", "source.scale"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, "(" * 500 + ")" * 500, "a:b('", "  x:y(", "\0:a", "lambda:0"]
)
def test_a_malformed_value_is_one_line(field, text):
    with pytest.raises(UserError, match=r"^--config\.source"):
        override(spec(Reader), field, text)


NUMBERS = {
    "overflow": ("source.scale", "1e400"),
    "nan": ("source.scale", "nan"),
    "inf": ("source.scale", "-inf"),
    "in a tuple": ("source.rates", "(1.0, 1e400)"),
    "in a block": ("source", f"{HERE}:Source(scale=1e400)"),
    "nan where infinity is a default": ("source.bound", "nan"),
}


@pytest.mark.parametrize(("path", "text"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_is_not_finite_is_refused(path, text):
    with pytest.raises(UserError, match=r"expected a finite number, got (-?inf|nan)"):
        override(spec(Reader), path, text)


def test_infinity_is_a_value_where_it_is_the_default():
    config = spec(Reader, source=spec(Source, bound=2.0))
    override(config, "source.bound", "inf")
    assert build(config).source.bound == math.inf
    with pytest.raises(UserError, match=r"Source\.scale=inf: expected a finite number"):
        spec(Source, scale=math.inf)


def test_checks_of_fields_refuse_what_is_not_finite():
    for value in (math.nan, math.inf):
        part = Source(scale=value)
        for check in (
            lambda part=part: positive(part, "scale"),
            lambda part=part: between(part, "scale", 0, math.inf),
            lambda part=part: finite(part, "scale"),
            lambda part=part: finite(dataclasses.replace(part, rates=(part.scale,)), "rates"),
        ):
            with pytest.raises(UserError, match="expected"):
                check()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files with colons in their names and above them."""
    monkeypatch.chdir(tmp_path)
    for name in ("x.py", "12:30/x.py", "a:b.py", "x y.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("def get_config(variant='none'):\n    return 'variant ' + variant\n")
    (tmp_path / "runs:5").mkdir()
    return tmp_path


NAMES = {
    "x.py": ("x.py", ""),
    "x.py:v": ("x.py", "v"),
    "x.py:/a/12:30/model": ("x.py", "/a/12:30/model"),
    "12:30/x.py": ("12:30/x.py", ""),
    "12:30/x.py:v": ("12:30/x.py", "v"),
    "a:b.py": ("a:b.py", ""),
    "a:b.py:v": ("a:b.py", "v"),
    "x y.py:v w": ("x y.py", "v w"),
    "no/12:30/x.py": ("no/12:30/x.py", ""),
    "no.py:v": ("no.py", "v"),
}


@pytest.mark.parametrize(("text", "expected"), NAMES.items())
def test_the_variant_follows_the_file(folder, text, expected):
    assert file_and_variant(text) == expected


@pytest.mark.parametrize("text", [".", "/dev/null", "none.py", "12:30", "binary.py", "exit.py"])
def test_what_is_no_config_file_is_one_line(folder, text):
    (folder / "binary.py").write_bytes(bytes(range(256)))
    (folder / "exit.py").write_text("raise SystemExit\n")
    with pytest.raises(UserError, match=r"^--config=[^\n]* Fix: "):
        load(text)


def test_a_step_is_a_number_after_the_folder(folder):
    assert run_and_step("runs:5") == "runs:5"  # an existing folder
    assert run_and_step("other:5") == ("other", 5)
    for text in ("other:²", "other:", ":5x", "other:x"):
        assert run_and_step(text) == text
