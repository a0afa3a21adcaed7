"""Config files: Python files whose mistakes are named by line, and the fields in which two configs differ."""

import pytest

from jaxdiff import config as configs
from jaxdiff.config import differences, spec
from tests.config.drawings import HERE, Circle, Tile, drawing, message_of


def write(tmp_path, text: str) -> str:
    file = tmp_path / "experiment.py"
    file.write_text(text)
    return str(file)


def test_load_runs_the_file(tmp_path):
    file = write(
        tmp_path,
        "from jaxdiff.config import spec\nimport fractions\n"
        "def get_config(variant='1'):\n"
        "    return spec(fractions.Fraction, numerator=int(variant))\n",
    )
    assert configs.load(file).numerator == 1
    assert configs.load(f"{file}:7").numerator == 7


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("x = 1\ndef get_config(:\n", 2, "invalid syntax"),
        ("import absent_package\n", 1, "No module named 'absent_package'"),
        ("def get_config():\n    x = {}\n    return x['a']\n", 3, "KeyError"),
        ("from jaxdiff.config import spec\nfrom fractions import Fraction\ndef get_config():\n"
         "    return spec(Fraction, numerator=1, denominatr=2)\n", 4, "did you mean denominator?"),
    ],
)  # fmt: skip
def test_load_names_the_line_of_a_mistake(tmp_path, text, line, expected):
    file = write(tmp_path, text)
    message = message_of(configs.load, file)
    assert message.startswith(f"--config={file}: line {line}: ")
    assert expected in message


@pytest.mark.parametrize("text", ["", "def get_config():\n    return None\n", "get_config = 3\n"])
def test_load_refuses_a_file_without_a_config(tmp_path, text):
    assert "return spec(Experiment, ...)" in message_of(configs.load, write(tmp_path, text))


def test_load_refuses_a_variant_of_a_file_without_variants(tmp_path):
    file = write(tmp_path, "def get_config():\n    pass\n")
    assert "got the variant 'large'. Fix: leave :large out" in message_of(configs.load, f"{file}:large")


def test_load_suggests_the_closest_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "give the path of a config file" in message_of(configs.load, "digits.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").touch()
    assert "did you mean configs/digits.py?" in message_of(configs.load, "configs/digit.py")
    assert "choose one of configs/digits.py" in message_of(configs.load, "zzz")


def test_differences_names_the_fields_that_differ():
    old, new = drawing(cutoff=1.0), drawing(cutoff=None, shape=spec(Circle, radius=1.0))
    new.tiles[1].width = 9
    assert differences(old, new) == {
        "shape.target": (f"{HERE}:Square", f"{HERE}:Circle"),
        "shape.side": (1.0, "absent"),
        "shape.radius": ("absent", 1.0),
        "tiles[1].width": (2, 9),
        "cutoff": (1.0, None),
    }
    assert differences(old, drawing(cutoff=1.0)) == {}
    assert differences(drawing(tiles=()), drawing(tiles=(spec(Tile, width=1),))).keys() == {"tiles"}
