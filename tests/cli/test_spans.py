import pytest

from jaxdiff import train
from jaxdiff.cli.spans import seconds_of, steps_of
from jaxdiff.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", 5400),
        ("1.5h", 5400),
        ("01:30:00", 5400),
        ("5400s", 5400),
        ("2d", 172800),
        ("100:00:01", 360001),
    ],
)
def test_a_duration_has_a_unit_or_three_parts(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["90", "0m", "-1h", "1:30", "1w", "", "nan", "25:61:00", "1:00:60"])
def test_other_durations_are_refused(text):
    with pytest.raises(UserError, match=f"--time-limit='{text}': expected a duration"):
        seconds_of(text)


def test_steps_are_a_range():
    assert steps_of("100:105") == (100, 105)
    assert steps_of("7:7") == (7, 7)


@pytest.mark.parametrize("text", ["0:5", "5:4", "5", "a:b", "1:2:3"])
def test_other_ranges_are_refused(text):
    with pytest.raises(UserError, match="--profile"):
        steps_of(text)


def test_a_command_refuses_them_before_it_reads_its_config():
    with pytest.raises(UserError, match="--time-limit"):
        train.main(["--config", "configs/digits.py", "--time-limit", "soon"])


def test_steps_that_the_run_does_not_have_are_not_traced_without_a_word(tmp_path):
    command = ["--config", "configs/digits.py", "--config.steps=200", "--workdir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="--profile='1000:2000': expected steps up to 200"):
        train.main([*command, "--profile=1000:2000"])
    assert not (tmp_path / "run").exists()
