"""Programs of clusters that are not here: each logs its arguments and fails as its model is known to."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"

# Logs a call as one quoted line, and its words as they are; then runs the body.
PROGRAM = r"""#!/usr/bin/env bash
printf '%s' "${{0##*/}}" >>"$FAKE/calls"
for word; do printf ' %q' "$word" >>"$FAKE/calls"; done
echo >>"$FAKE/calls"
printf '%s\x1f' "${{0##*/}}" "$@" >>"$FAKE/words" && printf '\x1e' >>"$FAKE/words"
{body}
"""


class Tools:
    """A folder in front of PATH with programs of bash, and the calls that were made to them."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.calls, self.words = folder, folder / "calls", folder / "words"
        (folder / "bin").mkdir()
        for log in (self.calls, self.words):
            log.touch()

    def add(self, name: str, body: str = "") -> None:
        program = self.folder / "bin" / name
        program.write_text(PROGRAM.format(body=body))
        program.chmod(0o755)

    def environment(self, **extra: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "FAKE": str(self.folder)} | extra

    def run(self, *command: object, **extra: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(word) for word in command], env=self.environment(**extra),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def called(self) -> list[list[str]]:
        """The words of each call, its program first."""
        return [call.split("\x1f")[:-1] for call in self.words.read_text().split("\x1e")[:-1]]


def flags(**values: object) -> list[str]:
    """Flags of a launcher; those with the value None are left out."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
