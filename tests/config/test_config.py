"""Config blocks: they build their objects, errors name the path of a mistake, and stored ones run no foreign code."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from jaxdiff.config import build, differences, from_json, spec, to_json
from jaxdiff.config.overrides import override
from tests.config.drawings import (
    HERE,
    Circle,
    Dense,
    Drawing,
    Named,
    Network,
    Square,
    Tile,
    drawing,
    message_of,
)

ROOT = pathlib.Path(__file__).parents[2]


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
