"""Mutation testing: break the mathematics in small ways, one at a time, and run the tests that should fail.

    python tests/mutate.py                     120 mutants of the files below, drawn with seed 0
    python tests/mutate.py --count 20 --seed 7 --only jaxdiff/sampling/samplers/unipc.py

A mutant flips a sign, drops a factor, swaps two times or signal and noise, or is off by one. What cannot matter (an
argument that lends its shape, a placeholder in a `where`, the text of an error) is left alone. A mutant is noticed if
any test fails, slow ones included, that imports the broken file, or a file that imports it. Prints those that nobody
noticed, and the share of the others; exits with 1 if that share is below 95 %.
"""

import argparse
import ast
import concurrent.futures
import copy
import dataclasses
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parent.parent
FILES = ("jaxdiff/process/*.py", "jaxdiff/sampling/**/*.py", "jaxdiff/likelihood/*.py", "jaxdiff/tasks/*.py")
TESTS = ("process", "sampling", "likelihood", "tasks", "training")
"""Folders of tests, beside that of the broken file's own package."""

TRAVELS = ("jaxdiff", "tests", "docs", "pyproject.toml", "README.md", "configs")
ENOUGH = 0.95
PATIENCE = 900  # seconds; a mutant that makes the tests hang is noticed

SWAPS = {
    "t": "t_next", "t_next": "t", "s": "t", "start": "end", "end": "start", "alpha": "sigma", "sigma": "alpha",
    "alpha_next": "sigma_next", "sigma_next": "alpha_next", "x_0": "noise", "noise": "x_0", "low": "high",
}  # fmt: skip
SIGNS: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
SILENT = ("expect", "positive", "between", "one_of", "UserError")
"""Calls whose arguments are texts and bounds of error messages, not computations."""

SHAPES = ("expand", "noise_like", "zeros_like", "ones_like")
"""Calls whose last argument lends nothing but its shape."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    what: str
    source: str


def mutants(file: pathlib.Path) -> Iterator[Mutant]:
    """All mutants of a file."""
    tree = ast.parse(file.read_text())
    name = str(file.relative_to(ROOT))
    for path in list(_sites(tree)):
        node = _at(tree, path)
        for what, new in _changes(node, _names(tree, path)):
            broken = copy.deepcopy(tree)
            _put(broken, path, new)
            yield Mutant(name, node.lineno, what, ast.unparse(ast.fix_missing_locations(broken)))


def _changes(node: ast.AST, known: set[str]) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.BinOp):
        was = ast.unparse(node)
        if type(node.op) in SIGNS:
            new = ast.BinOp(node.left, SIGNS[type(node.op)](), node.right)
            yield f"{was}  ->  {ast.unparse(new)}", new
        if isinstance(node.op, ast.Mult | ast.Div):
            yield f"{was}  ->  {ast.unparse(node.left)}", node.left
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield f"{ast.unparse(node)}  ->  {ast.unparse(node.operand)}", node.operand
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        other = SWAPS.get(node.id)
        if other in known:
            yield f"{node.id}  ->  {other}", ast.Name(other, ast.Load())
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield f"{node.value}  ->  {node.value + 1}", ast.Constant(node.value + 1)


def _sites(node: ast.AST, path: tuple = (), inside: bool = False) -> Iterator[tuple]:
    """Paths to the expressions that compute something: inside functions, without annotations, checks and errors."""
    if inside and isinstance(node, ast.BinOp | ast.UnaryOp | ast.Name | ast.Constant):
        yield path
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return
    # A handler that ends with another error computes nothing but its text.
    if isinstance(node, ast.ExceptHandler) and isinstance(node.body[-1], ast.Raise):
        return
    called = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
    if called in SILENT:
        return
    if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
        return
    inside = inside or isinstance(node, ast.FunctionDef)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases") or (
            isinstance(node, ast.FunctionDef) and field == "args"
        ):
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if called in SHAPES and field == "args" and i == len(value) - 1:
                continue
            # `where(fine, x, 1.0)` inside a division: a number that is computed with, and thrown away.
            if called == "where" and field == "args" and i > 0 and isinstance(child, ast.Constant):
                continue
            if isinstance(child, ast.AST):
                yield from _sites(child, (*path, (field, i if isinstance(value, list) else None)), inside)


def _names(tree: ast.AST, path: tuple) -> set[str]:
    """The names that the innermost function around a site has bound."""
    function, node = tree, tree
    for field, i in path:
        node = getattr(node, field) if i is None else getattr(node, field)[i]
        if isinstance(node, ast.FunctionDef):
            function = node
    found = {inner.id for inner in ast.walk(function) if isinstance(inner, ast.Name)}
    return found | {inner.arg for inner in ast.walk(function) if isinstance(inner, ast.arg)}


def _at(tree: ast.AST, path: tuple):
    for field, i in path:
        tree = getattr(tree, field) if i is None else getattr(tree, field)[i]
    return tree


def _put(tree: ast.AST, path: tuple, new: ast.expr) -> None:
    owner, (field, i) = _at(tree, path[:-1]), path[-1]
    if i is None:
        setattr(owner, field, new)
    else:
        getattr(owner, field)[i] = new


def tests_of(file: str) -> list[str]:
    """The test files that import a file, the one of the same name first; then those that import a file that does."""
    module = _module(ROOT / file)
    users = sorted(path for path in (ROOT / "jaxdiff").rglob("*.py") if _imports(path, module))
    found = [*_importing(module), *(test for user in users for test in _importing(_module(user)))]
    return list(dict.fromkeys(found))


def _importing(module: str) -> list[str]:
    package, name = module.split(".")[1], module.rpartition(".")[2]
    folders = dict.fromkeys((*TESTS, package))
    tests = sorted(path for folder in folders for path in (ROOT / "tests" / folder).rglob("test_*.py"))
    found = [path for path in tests if _imports(path, module)]
    found.sort(key=lambda path: (path.stem != f"test_{name}", path.stat().st_size))
    return [str(path.relative_to(ROOT)) for path in found]


def _module(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT)).removesuffix(".py").replace("/", ".")


def _imports(path: pathlib.Path, module: str) -> bool:
    package, _, name = module.rpartition(".")
    pattern = rf"from {re.escape(package)} import [^\n]*\b{name}\b|{re.escape(module)}\b"
    return re.search(pattern, path.read_text()) is not None


def sample(files: list[pathlib.Path], count: int, seed: int) -> list[Mutant]:
    """Mutants of all files, as many of each as it has lines that compute, and never two alike."""
    random_ = random.Random(seed)
    everything = [mutant for file in files for mutant in mutants(file)]
    by_line = {}
    for mutant in everything:
        by_line.setdefault((mutant.file, mutant.line), []).append(mutant)
    lines = random_.sample(sorted(by_line), min(count, len(by_line)))
    return [random_.choice(by_line[line]) for line in lines]


class Bench:
    """Copies of the repository, one for each worker, in which mutants are tried."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._local = folder, threading.local()

    def notices(self, mutant: Mutant) -> bool:
        home = self._home()
        target = home / mutant.file
        good = target.read_text()
        target.write_text(mutant.source)
        try:
            tests = tests_of(mutant.file)
            return any(_fails(home, *speed, test) for speed in ((), ("-m", "slow")) for test in tests)
        finally:
            target.write_text(good)

    def _home(self) -> pathlib.Path:
        if not hasattr(self._local, "home"):
            self._local.home = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
            for name in TRAVELS:
                source, target = ROOT / name, self._local.home / name
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        return self._local.home


def _fails(home: pathlib.Path, *tests: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=home, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode not in (0, 5)


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--count", type=int, default=120)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument("--only", nargs="*", default=FILES, help="files or patterns")
    asked = flags.parse_args()
    files = sorted(
        file for pattern in asked.only for file in ROOT.glob(pattern) if file.name != "__init__.py"
    )
    chosen = sample(files, asked.count, asked.seed)
    began, missed = time.monotonic(), []
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(asked.workers) as pool,
    ):
        bench = Bench(pathlib.Path(folder))
        for mutant, seen in zip(chosen, pool.map(bench.notices, chosen), strict=True):
            print("noticed" if seen else "MISSED ", f"{mutant.file}:{mutant.line}: {mutant.what}", flush=True)
            if not seen:
                missed.append(mutant)
    share = 1 - len(missed) / max(len(chosen), 1)
    print(
        f"\n{len(chosen) - len(missed)} of {len(chosen)} mutants noticed ({share:.1%}), seed {asked.seed}, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
