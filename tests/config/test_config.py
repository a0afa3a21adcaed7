"""Configs: blocks build their objects, errors name the path of a mistake, and stored configs run no foreign code."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Literal, Protocol

import flax.linen as nn
import pytest
from ml_collections import ConfigDict

from jaxdiff import config as configs
from jaxdiff.config import build, differences, from_json, spec, to_json
from jaxdiff.config.overrides import leaves, override
from jaxdiff.errors import UserError, positive

HERE = __name__
ROOT = pathlib.Path(__file__).parents[2]


class Shape(Protocol):
    def area(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Square:
    side: float = 1.0

    def __post_init__(self):
        positive(self, "side")

    def area(self) -> float:
        return self.side**2


@dataclasses.dataclass(frozen=True)
class Circle:
    radius: float

    def area(self) -> float:
        return 3.0 * self.radius**2


@dataclasses.dataclass(frozen=True)
class Framed:
    inner: Shape

    def area(self) -> float:
        return 2.0 * self.inner.area()


@dataclasses.dataclass(frozen=True)
class Tile:
    width: int
    gap: float = 0.5


@dataclasses.dataclass(frozen=True)
class Drawing:
    shape: Shape
    tiles: tuple[Tile, ...] = ()
    backdrop: Shape | None = None
    size: tuple[int, int] = (8, 8)
    limits: tuple[float, ...] = (0.0, 1.0)
    steps: int = 10
    cutoff: float | None = None
    colour: str = "red"
    title: str | None = None
    bright: bool = False
    mode: Literal["fill", "line"] = "fill"
    layers: Mapping[str, Shape] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Named:
    name: str


class Dense(nn.Module):
    width: int
    dtype: str = "float32"


class Network(nn.Module):
    blocks: tuple[nn.Module, ...]
    parts: Mapping[str, nn.Module]
    head: nn.Module
    dropout: float = 0.0


def drawing(**changed) -> ConfigDict:
    arguments = {"shape": spec(Square), "tiles": (spec(Tile, width=1), spec(Tile, width=2)), **changed}
    return spec(Drawing, **arguments)


def message_of(action, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments, **keywords)
    text = str(caught.value)
    assert "\n" not in text
    assert "Fix: " in text
    return text


# spec


def test_spec_includes_every_default():
    assert spec(Tile, width=3).to_dict() == {"target": f"{HERE}:Tile", "width": 3, "gap": 0.5}


def test_spec_refuses_an_unknown_argument():
    assert "did you mean width?" in message_of(spec, Tile, widht=3)
    assert "use one of width, gap" in message_of(spec, Tile, width=3, zzz=1)


def test_spec_refuses_a_missing_argument():
    assert "pass width=..." in message_of(spec, Tile)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"steps": "ten"}, "expected int, got str"),
        ({"steps": 1.5}, "expected int, got float"),
        ({"steps": True}, "expected int, got bool"),
        ({"bright": 1}, "expected bool, got int"),
        ({"colour": 3}, "expected str, got int"),
        ({"cutoff": "low"}, "expected float or None, got str"),
        ({"size": (8, 8, 1)}, "expected tuple[int, int], got tuple"),
        ({"size": (8, 8.5)}, "expected tuple[int, int], got tuple"),
        ({"mode": "dots"}, "expected Literal['fill', 'line'], got str"),
        ({"shape": 3.0}, "expected Shape, got float"),
        ({"tiles": (1, 2)}, ", got tuple"),
    ],
)
def test_spec_refuses_a_wrong_type(changed, expected):
    (name,) = changed
    text = message_of(drawing, **changed)
    assert text.startswith(f"Drawing.{name}=")
    assert expected in text


def test_spec_refuses_an_object_instead_of_a_block():
    assert "Fix: pass spec(Square, ...)" in message_of(drawing, shape=Square())
    assert "Fix: pass spec(Square, ...)" in message_of(drawing, shape=Square)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"limits": (0, 1)}, (0.0, 1.0)),
        ({"cutoff": 2}, 2.0),
        ({"steps": 1e5}, 100_000),
        ({"size": [4, 4]}, (4, 4)),
    ],
)
def test_numbers_are_converted_to_the_fields_type(changed, expected):
    ((name, _),) = changed.items()
    value = drawing(**changed)[name]
    assert value == expected
    assert str(value) == str(expected)  # 2 == 2.0, but their configs differ


def test_blocks_share_nothing():
    tile = spec(Tile, width=1)
    config = drawing(tiles=(tile,) * 3)
    override(config, "tiles[1].width", "5")
    assert [it.width for it in config.tiles] == [1, 5, 1]
    assert tile.width == 1


# build


def test_build_makes_nested_objects():
    config = drawing(backdrop=spec(Circle, radius=2), layers={"top": spec(Square, side=3.0)})
    assert build(config) == Drawing(
        shape=Square(), tiles=(Tile(1), Tile(2)), backdrop=Circle(2.0), layers={"top": Square(3.0)}
    )


def test_a_field_called_name_is_hidden_only_in_linen_modules():
    config = spec(Named, name="digits")
    override(config, "name", "letters")
    assert build(config) == Named("letters")
    assert "pass name=..." in message_of(spec, Named)


def test_build_makes_linen_modules():
    config = spec(Network, blocks=(spec(Dense, width=2), spec(Dense, width=3)),
                  parts={"label": spec(Dense, width=4)}, head=spec(Dense, width=5))  # fmt: skip
    assert "parent" not in config
    assert "name" not in config
    expected = Network(blocks=(Dense(2), Dense(3)), parts={"label": Dense(4)}, head=Dense(5))
    assert build(config) == build(from_json(to_json(config))) == expected


def test_build_names_the_path_of_a_refused_value():
    config = drawing()
    config.shape.side = -1.0
    assert message_of(build, config).startswith("config.shape.side=-1.0: expected a number > 0")


def test_build_names_an_unknown_field():
    config = drawing()
    config.tiles[1].widht = 3
    text = message_of(build, config)
    assert text.startswith("config.tiles[1].widht: ")
    assert "did you mean width?" in text


def test_build_names_a_missing_field():
    stored = json.loads(to_json(drawing()))
    del stored["tiles"][0]["width"]
    text = message_of(build, stored)
    assert text.startswith("config.tiles[0]: ")
    assert "width" in text


def test_json_gives_equal_objects():
    config = drawing(backdrop=spec(Circle, radius=2.0), cutoff=1e-20, size=(1, 2), layers={"a": spec(Square)})
    again = from_json(to_json(config))
    assert build(again) == build(json.loads(to_json(config))) == build(config)
    assert to_json(again) == to_json(config)
    assert not differences(config, again)


# load


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
    assert "takes 0 positional arguments" in message_of(configs.load, f"{file}:large")


def test_load_suggests_the_closest_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "give the path of a config file" in message_of(configs.load, "digits.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").touch()
    assert "did you mean configs/digits.py?" in message_of(configs.load, "configs/digit.py")
    assert "choose one of configs/digits.py" in message_of(configs.load, "zzz")


# override


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("steps", "20", 20),
        ("steps", "1e5", 100_000),
        ("shape.side", "3", 3.0),
        ("tiles[1].width", "7", 7),
        ("size", "(4, 6)", (4, 6)),
        ("size", "4,6", (4, 6)),
        ("size[1]", "6", 6),
        ("limits", "[0, 2]", (0.0, 2.0)),
        ("cutoff", "0.25", 0.25),
        ("cutoff", "None", None),
        ("colour", "None", "None"),
        ("colour", "12", "12"),
        ("title", "None", None),
        ("title", "12", "12"),
        ("bright", "true", True),
        ("bright", "False", False),
        ("mode", "line", "line"),
    ],
)
def test_override_sets_a_field_by_its_path(path, text, expected):
    config = drawing(cutoff=1.0, title="old")
    untouched = drawing(cutoff=1.0, title="old")
    override(config, path, text)
    assert all(changed.startswith(path.partition("[")[0]) for changed in differences(untouched, config))
    value = eval(f"config.{path}", {"config": config})
    assert value == expected
    assert str(value) == str(expected)
    build(config)


@pytest.mark.parametrize("path", ["shape", "backdrop", "tiles[0]", "layers.top"])
def test_override_sets_a_block_by_its_class(path):
    config = drawing(layers={"top": spec(Square)})
    override(config, path, f"{HERE}:Circle(radius=2)")
    assert eval(
        f"drawing.{path}" if path != "layers.top" else "drawing.layers['top']", {"drawing": build(config)}
    ) == Circle(2.0)


def test_override_turns_a_block_off_and_on():
    config = drawing(backdrop=spec(Square))
    override(config, "backdrop", "None")
    assert build(config).backdrop is None
    override(config, "backdrop", f"{HERE}:Square")
    override(config, "backdrop.side", "2")
    assert build(config).backdrop == Square(2.0)


def test_override_takes_several_classes_and_classes_in_classes():
    config = drawing()
    override(config, "tiles", f"{HERE}:Tile(width=3), {HERE}:Tile(width=4, gap=1)")
    assert build(config).tiles == (Tile(3), Tile(4, 1.0))
    override(config, "tiles", f"{HERE}:Tile(width=5)")
    assert build(config).tiles == (Tile(5),)
    override(config, "tiles", "()")
    assert build(config).tiles == ()
    override(config, "shape", f"{HERE}:Framed(inner={HERE}:Circle(radius=2.0))")
    assert build(config).shape == Framed(Circle(2.0))


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("step", "did you mean --config.steps?"),
        ("radius", "did you mean --config.backdrop.radius?"),
        ("shape.sied", "did you mean --config.shape.side?"),
        ("tiles[0].widht", "did you mean --config.tiles[0].width?"),
        ("tiles[9].width", "did you mean --config.tiles["),
        ("steps.steps", "did you mean --config.steps?"),
        ("qqqq", "use one of backdrop, bright"),
    ],
)
def test_override_suggests_the_closest_path(path, suggestion):
    config = drawing(backdrop=spec(Circle, radius=2.0))
    text = message_of(override, config, path, "1")
    assert text.startswith(f"--config.{path}=1: expected a field of the config, got")
    assert suggestion in text


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("steps", "many", "expected int, got str"),
        ("steps", "1.5", "expected int, got float"),
        ("steps", "None", "expected int, got None"),
        ("bright", "yes", "expected bool, got str"),
        ("cutoff", "low", "expected float or None, got str"),
        ("size", "(1, 2, 3)", "expected tuple[int, int]"),
        ("size[0]", "a", "expected int"),
        ("mode", "dots", "expected Literal['fill', 'line']"),
        ("tiles", "(1, 2)", ", got tuple"),
        ("shape", "None", "expected a class, got"),
        ("shape", "3", "expected a class, got"),
        ("shape", f"{HERE}:Cirle", "did you mean Circle?"),
        ("shape", f"{HERE}:Circle", "pass radius=..."),
        ("shape", f"{HERE}:Circle(2)", "write module:Class(name=value)"),
        ("shape", f"{HERE}:Circle(radius=2", "write module:Class(name=value)"),
        ("shape", f"{HERE}:Circle(radius=f(2))", "write module:Class(name=value)"),
        ("shape", "absent_package:Circle", "No module named 'absent_package'"),
    ],
)
def test_override_refuses_a_value_of_another_type(path, text, expected):
    config = drawing()
    before = to_json(config)
    assert expected in message_of(override, config, path, text)
    assert to_json(config) == before


# stored configs

SMUGGLED = [
    "os:system",
    "subprocess:Popen",
    "builtins:eval",
    "jaxdiff.config:importlib",
    "jaxdiff.config:ConfigDict",
    "jaxdiff.config:Path",
    "jaxdiff.config:build",
    "jaxdiff.cli.app:argparse",
    "jaxdiff.cli.app:argparse.ArgumentParser",
    "jaxdiff:config",
    "jaxdiff.absent:Thing",
    "jaxdiff_evil:Thing",
    "jaxdiff",
    ":",
    "",
    ".os:system",
    None,
]


@pytest.mark.parametrize("target", SMUGGLED)
def test_a_stored_config_makes_no_foreign_object(target):
    stored = {"target": "jaxdiff.process.schedule:Linear", "beta_min": {"target": target, "args": "true"}}
    assert message_of(build, stored, ("jaxdiff",)).startswith("config.beta_min.target=")


def test_a_stored_config_makes_classes_of_trusted_packages():
    stored = json.loads(to_json(spec(Square, side=2.0)))
    assert f"--packages={HERE.partition('.')[0]}" in message_of(build, stored, ("jaxdiff",))
    assert build(stored, ("jaxdiff", HERE.partition(".")[0])) == Square(2.0)


def test_an_override_of_a_stored_config_imports_nothing_foreign(tmp_path):
    (tmp_path / "evil.py").write_text(
        "print('imported')\nclass Thing:\n    def __init__(self, x: int = 1): ...\n"
    )
    program = """
from jaxdiff import config, errors
from jaxdiff.config import overrides
stored = config.from_json('{"target": "evil:Thing", "x": 1}')
try:
    overrides.override(stored, "x", "2", packages=("jaxdiff",))
except errors.UserError as error:
    print("refused:", error)
"""
    printed = subprocess.check_output(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True
    )
    assert printed.startswith("refused: ")


# comparing


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


def test_leaves_are_paths_that_override_understands():
    config = drawing(layers={"top": spec(Square)})
    found = list(leaves(config))
    assert {"shape", "shape.side", "tiles[0]", "tiles[1].gap", "layers.top.side"} <= set(found)
    for path in found:
        eval(f"config.{path}", {"config": config})
