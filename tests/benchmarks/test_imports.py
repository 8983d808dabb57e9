"""Benchmarks and notebooks import names that the package has."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "benchmarks").rglob("*.py")), *sorted((ROOT / "examples").glob("*.ipynb"))]


def source_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_imported_name_exists(path):
    wrong = []
    for node in ast.walk(ast.parse(source_of(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "datar_jax":
            module = importlib.import_module(node.module)
            for name in node.names:
                package = (ROOT / node.module.replace(".", "/") / name.name).with_suffix(".py").exists()
                if not (hasattr(module, name.name) or package):
                    wrong.append(f"{node.module}.{name.name}")
    assert not wrong
