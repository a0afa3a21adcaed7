"""What `jaxdiff.plan` says of memory, beside what the compiler of TPUs allocates: a table of docs/plan.md.

    pip install 'jaxdiff[tpu]' && python docs/scripts/plan_compiled.py --limit 600

Every config is compiled in a process of its own, by --quick. One line for each case: memory as planned and as compiled
in GB, their ratio, whether it fits, and the seconds of compiling.
"""

import argparse
import json
import subprocess
import sys

CONFIGS = (
    "configs/digits.py",
    "configs/scenes_text.py",
    "configs/photos_sr.py",
    "configs/scenes_unclip.py:clip",
    "configs/scenes_unclip.py:prior",
    "configs/ddpm.py",
)
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
TOO_LARGE = 1


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--configs", nargs="+", default=CONFIGS)
    flags.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    flags.add_argument("--limit", type=float, default=600, help="seconds for each (default: %(default)s)")
    flags.add_argument("--full", action="store_true", help="without --quick")
    given, words = flags.parse_known_args()
    for config in given.configs:
        for topology in given.topologies:
            effort = [] if given.full else ["--quick"]
            print(
                f"| {config} | {topology} | {row(config, topology, given.limit, [*effort, *words])} |",
                flush=True,
            )


def row(config: str, topology: str, limit: float, words: list[str]) -> str:
    """The figures of a config and a topology; `words` are further flags of the command."""
    command = [
        sys.executable,
        "-m",
        "jaxdiff.plan",
        "--config",
        config,
        "--compile",
        topology,
        "--json",
        *words,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not compiled in {limit:.0f} s"
    if done.returncode not in (0, TOO_LARGE) or not done.stdout:
        return done.stderr.strip().splitlines()[-1]
    found = json.loads(done.stdout)
    step, planned = found["train_step"], found["planned_memory_bytes"]
    needed = step["memory_bytes"]
    compiled = f"{needed / 1e9:.3f}" if needed else "?"
    ratio = f"{planned / needed:.2f}" if planned and needed else ""
    fits = "fits" if step["fits"] else "does not fit"
    seconds = f"{step['compile_seconds']:.0f}" if step["fits"] else ""
    return (
        f"{planned / 1e9:.3f} | {compiled} | {ratio} | {fits} | {seconds}"
        if planned
        else f"| {compiled} | | {fits} | {seconds}"
    )


if __name__ == "__main__":
    main()
