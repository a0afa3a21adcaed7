"""Overrides: fields are set by path, and errors suggest the closest path or name the expected type."""

import pytest

from jaxdiff.config import build, differences, spec, to_json
from jaxdiff.config.overrides import leaves, override
from tests.config.drawings import HERE, Circle, Framed, Square, Tile, drawing, message_of


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


def test_override_knows_a_field_that_is_newer_than_the_stored_config():
    config = drawing()
    for name in ("steps", "cutoff"):
        del config[name]
    override(config, "steps", "20")
    override(config, "cutoff", "0.25")
    assert not differences(config, drawing(steps=20, cutoff=0.25))
    override(config, "shape", "tests.config.drawings:Square(side=1.0)")
    del config["shape"]  # has no default
    assert "expected a field of the config" in message_of(lambda: override(config, "shape.side", "3"))


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


def test_leaves_are_paths_that_override_understands():
    config = drawing(layers={"top": spec(Square)})
    found = list(leaves(config))
    assert {"shape", "shape.side", "tiles[0]", "tiles[1].gap", "layers.top.side"} <= set(found)
    for path in found:
        eval(f"config.{path}", {"config": config})
