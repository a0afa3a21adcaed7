"""docs/launching.md: each of its commands is run with --dry-run, and what it says of the scripts holds."""

import re
import shlex

import pytest

from jaxdiff import config, train
from jaxdiff.cli import app
from tests.launch.tools import LAUNCH, ROOT

GUIDE = (ROOT / "docs/launching.md").read_text()
BLOCKS = "\n".join(re.findall(r"^```bash\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
OF_TRAIN = ("--config", "--workdir")
COMMANDS = [shlex.split(line) for line in BLOCKS.splitlines() if line]


@pytest.mark.parametrize(
    "words", COMMANDS, ids=lambda words: f"{words[0]} {words[words.index('--config') + 1]}"
)
def test_each_command_is_accepted_and_its_config_exists(tools, words):
    script, *arguments = words
    if script != "launch/local.sh":
        finished = tools.run(ROOT / script, "--dry-run", *arguments)
        assert finished.returncode == 0, finished.stderr
        assert "jaxdiff.train" in finished.stdout
        assert all(words[words.index(flag) + 1] in finished.stdout for flag in OF_TRAIN)
        given = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
        arguments = [*(word for flag in OF_TRAIN for word in (flag, words[words.index(flag) + 1])), *given]
    flags, overrides = train.parser().parse(arguments)
    config.build(app.load_config(str(ROOT / flags.config), overrides))


def test_each_launcher_is_in_the_guide():
    ours = {path.name for path in LAUNCH.iterdir()} - {"common.sh"}
    assert ours == set(re.findall(r"`launch/([\w.]+)`", GUIDE))
    used = {words[0].removeprefix("launch/") for words in COMMANDS}
    assert used == ours - {"slurm_job.sh", "gke_jobset.yaml"}
