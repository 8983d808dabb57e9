"""Every command in the README and the docs is parsed, and its configuration built; every file that they name exists."""

import re
import shlex
from pathlib import Path

import pytest

from datar_jax.cli.main import COMMANDS
from datar_jax.config.loader import load_config, read_overrides

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """Words of the commands of this program in the fenced blocks of a page, without what stands before its name."""
    found = []
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.search(r"datar-jax |-m datar_jax |train\.py ", line) or line.lstrip().startswith("#"):
                continue
            if line.count("'") % 2:  # a line of a longer quotation
                line = line.replace("'", " ")
            words = shlex.split(line, comments=True)
            names = ("datar-jax", "datar_jax", "train.py")
            at = [i for i, word in enumerate(words) if word.rsplit("/", 1)[-1] in names]
            rest = words[at[-1] + 1 :] if at else []
            if rest and rest[0] != "&&" and "NAME" not in line:  # a folder of that name, a pattern of a command
                found.append(["train", *rest] if words[at[-1]].endswith("train.py") else rest)
    return found


CASES = [(page.relative_to(ROOT).as_posix(), words) for page in PAGES for words in commands(page)]


def test_there_are_commands_on_the_first_page() -> None:
    assert sum(page == "README.md" for page, _ in CASES) >= 8


@pytest.mark.parametrize(("page", "words"), CASES, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_documented_command_is_one_and_its_configuration_can_be_built(page: str, words: list[str]) -> None:
    assert words[0] in {*COMMANDS, "--help"}, words
    configs = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    overrides = read_overrides([word for word in words if word.startswith("--config.")], page)
    overrides = {name: value for name, value in overrides.items() if name != "init.from"}
    for name in configs:
        path = Path(name) if name.startswith("/") else ROOT / name
        load_config(path if path.is_file() else name, overrides)
    assert configs or words[0] != "train", words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    names = re.findall(
        r"(?<![./])\b(?:benchmarks|configs|datar_jax|docs|examples|tests)/[\w./-]*\w", page.read_text("utf-8")
    )
    assert not [name for name in names if "NAME" not in name and not (ROOT / name).exists()]


@pytest.mark.parametrize("config", sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
@pytest.mark.parametrize("variant", ["datar_nano", "datar_tiny", "datar_small", "datar_base"])
def test_every_variant_fits_every_configuration(config: str, variant: str) -> None:
    assert load_config(config, {"model": variant}).model.num_classes == 0
