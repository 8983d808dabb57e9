"""What is installed is the whole package, with the configurations, and asks for what it imports."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_installed():
    there = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "datar_jax").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == there | {"datar_jax.configs"}


def test_every_import_is_of_a_declared_dependency():
    modules = {"orbax": "orbax-checkpoint", "absl": "absl-py"}
    extras = [name for group in PROJECT["project"]["optional-dependencies"].values() for name in group]
    declared = [*PROJECT["project"]["dependencies"], *extras, "jax2onnx"]  # pinned in requirements-onnx.txt
    names = {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in declared}
    for file in (ROOT / "datar_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                found = [node.module]
            elif isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            else:
                continue
            for module in found:
                top = module.split(".")[0]
                if top in sys.stdlib_module_names or top == "datar_jax":
                    continue
                assert modules.get(top, top).lower().replace("_", "-") in names, (file.name, module)
