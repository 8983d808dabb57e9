"""Laws of the house: which package may import which, and how large a file and a function may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "datar_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# A package imports only from floors below its own; packages of one floor know nothing of each other.
FLOORS = {
    **dict.fromkeys(("version", "labels", "typed_json", "ops", "compilation_cache"), 1),
    **dict.fromkeys(("foreign_files", "escaping", "wording"), 1),
    **dict.fromkeys(("config", "locks"), 2),
    **dict.fromkeys(("metrics", "atomic_files", "audio", "backend", "terminal", "progress"), 3),
    **dict.fromkeys(("filesystem", "plotting"), 4),
    **dict.fromkeys(("models", "data"), 5),
    "checkpoints": 6,
    **dict.fromkeys(("training", "export"), 7),
    "inference": 8,
    "cli": 9,
    "__main__": 10,
}
MAX_LINES, MAX_TEST_LINES, MAX_FUNCTION_LINES = 320, 450, 80
# Words of earlier versions that say nothing to a reader of this field.
RIDDLES = {"cook", "cooked", "deaf", "heard", "material", "riddle", "told", "tell", "tells", "said", "unsaid"}


class Import(NamedTuple):
    """One import: the file it stands in, the module it names, and whether it runs as the file is imported."""

    file: Path
    module: str
    at_start: bool


def imports_of(path: Path) -> Iterator[Import]:
    """All imports of a file but those for type checkers alone."""

    def visit(node: ast.AST, at_start: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (Import(path, name.name, at_start) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.module and not child.level, f"{path}: a relative import"
                for name in child.names:
                    module = f"{child.module}.{name.name}"
                    is_module = (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
                    is_package = (ROOT / module.replace(".", "/")).is_dir()
                    yield Import(path, module if is_module or is_package else child.module, at_start)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, at_start and not inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


IMPORTS = [each for path in FILES for each in imports_of(path)]


def room(path: Path) -> str:
    """The package of a file, or the name of a module on the ground."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_run_downward_only():
    wrong = set()
    for file, module, _ in IMPORTS:
        parts = module.split(".")
        here = room(file)
        if parts[0] != "datar_jax" or len(parts) < 2 or here in ("__init__", parts[1]):
            continue
        if FLOORS[parts[1]] >= FLOORS[here]:
            wrong.add(f"{file.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("ops", ("flax",)),
        ("config", ("jax", "flax", "numpy")),
        ("data", ("jax", "flax", "orbax", "optax")),
        ("inference", ("grain", "optax", "datar_jax.training", "datar_jax.data")),
        ("models", ("grain", "optax", "orbax")),
    ],
)
def test_a_package_knows_nothing_of(package, forbidden):
    wrong = {
        f"{file.relative_to(ROOT)} imports {module}"
        for file, module, _ in IMPORTS
        if room(file) == package and any(module == name or module.startswith(f"{name}.") for name in forbidden)
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_settings_start_without_jax():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if room(path) == "config"
    ]
    program = f"import sys, {', '.join(modules)}; assert not {{'jax', 'flax'}} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


def test_modules_form_no_circle():
    graph: dict[str, set[str]] = {}
    for file, module, at_start in IMPORTS:
        if at_start and module.startswith("datar_jax."):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            graph.setdefault(name, set()).add(module)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for below in sorted(graph.get(module, ())):
                visit(below, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def sources(folder: str) -> list[Path]:
    """Source files of a folder beside the package."""
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    "path",
    [*FILES, ROOT / "train.py", *sources("benchmarks"), *sources("tests")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_file_and_its_functions_keep_to_their_room(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= (MAX_TEST_LINES if ROOT / "tests" in path.parents else MAX_LINES)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", [*FILES, ROOT / "train.py"], ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_of_the_field(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for field in ("id", "attr", "arg", "name"):
            if isinstance(name := getattr(node, field, None), str):
                names |= set(name.lower().strip("_").split("_"))
    assert not names & RIDDLES
