"""Command-line overrides: typed values, and the error for each kind of mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datar_jax import config as c
from datar_jax.atomic_files import write_json
from datar_jax.config import loader as settings
from tests.helpers import assert_one_line


def leaves(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Values of all fields by the dotted names that are typed."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(settings):
        one, name = getattr(settings, field.name), f"{prefix}{field.encode_name}"
        found |= leaves(one, f"{name}.") if isinstance(one, msgspec.Struct) else {name: one}
    return found


LEAVES = leaves(c.Config())


def value(config: c.Config, field: str) -> Any:
    return leaves(config)[field]


# An invalid override: field, text, parts of the error.
TYPED = [
    ("model.dimz", "1", ["model.dimz='1'", "no field 'dimz'", "did you mean model.dims?"]),
    ("optim.lerning_rate", "1", ["did you mean optim.learning_rate?"]),
    ("modle.dims", "1", ["no field 'modle'", "did you mean model?"]),
    ("train.xyzzy", "1", ["train has no field 'xyzzy'", "known: epochs, batch_size"]),
    ("train.epochs", "many", ["train.epochs='many'", "whole number"]),
    ("train.epochs", "1.5", ["train.epochs='1.5'", "whole number"]),
    ("train.epochs.days", "1", ["train.epochs has no fields of its own"]),
    ("optim.learning_rate", "fast", ["optim.learning_rate='fast'", "give a number"]),
    ("model.remat", "yes", ["model.remat='yes'", "true or false"]),
    ("model.deformable.grid", "center", ["model.deformable.grid='center'", "centre, dat2022, dat2023"]),
    ("model.deformable.gruops", "1", ["did you mean model.deformable.groups?"]),
    ("model.deformable", "1", ["a group of fields", "groups, strides, kernels"]),
    ("model.windows", "8,8", ["model.windows='8,8'", "is now model.window.sizes or model.neighborhood.sizes"]),
    ("model.groups", "1", ["is now model.deformable.groups"]),
    ("model.sampler", "hat", ["model.sampler was removed"]),
    ("model.classes", "3", ["is now model.num_classes"]),
    ("train.accumulate", "2", ["is now train.grad_accum_steps"]),
    ("model.dims", "8,x", ["model.dims='8,x'", "commas"]),
    ("model.dims", "8.5,16", ["model.dims='8.5,16'", "commas"]),
    ("model.window.sizes", "8,8,8,8", ["model.window.sizes='8,8,8,8'", "commas"]),
    ("augment.background_snr_db", "1", ["augment.background_snr_db='1'", "commas"]),
    ("train", "3", ["train='3'", "a group of fields", "epochs"]),
    (
        "model",
        "datar_huge",
        ["model='datar_huge'", "no such variant", "datar_nano, datar_tiny, datar_small, datar_base"],
    ),
    ("model.dropout", "2", ["model.dropout=2.0", "less than 1"]),
    ("train.grad_accum_steps", "3", ["train.grad_accum_steps=3", "train.batch_size=32"]),
]


@pytest.mark.parametrize("field, text, parts", TYPED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_wrong_override_says_what_would_do(plain: Path, field: str, text: str, parts: list[str]) -> None:
    with pytest.raises(c.ConfigError) as error:
        settings.load_config(plain, {field: text})
    assert_one_line(error, *parts)


@pytest.mark.parametrize(
    "field, text, expected",
    [
        ("train.epochs", "3", 3),
        ("optim.learning_rate", "1e-4", 1e-4),
        ("optim.ema", "0", 0.0),
        ("model.remat", "true", True),
        ("model.remat", "0", False),
        ("data.root", "/a folder/with, signs", "/a folder/with, signs"),
        ("data.root", "7", "7"),
        ("model.heads", "1,1,2,4", (1, 1, 2, 4)),
        ("model.heads", "(2, 2, 4, 8)", (2, 2, 4, 8)),
        ("model.heads", "[2,2,4,8,]", (2, 2, 4, 8)),
        ("model.spec", "L, D, SD, LS", ("L", "D", "SD", "LS")),
        ("model.spec", "('L', 'D', 'SD', 'LS')", ("L", "D", "SD", "LS")),
        ("model.window.sizes", "((4, 8), (8, 4), (8, 8), (2, 2))", ((4, 8), (8, 4), (8, 8), (2, 2))),
        ("model.deformable.groups", "1,1,2,4", (1, 1, 2, 4)),
        ("model.deformable.grid", "dat2022", "dat2022"),
        ("model.window.sizes", "[[4,8],[8,4],[8,8],[2,2]]", ((4, 8), (8, 4), (8, 8), (2, 2))),
        ("augment.background_snr_db", "-5,5.5", (-5.0, 5.5)),
        ("augment.background_snr_db", "3,3", (3.0, 3.0)),
    ],
)
def test_an_override_has_the_type_of_its_field(plain: Path, field: str, text: str, expected: Any) -> None:
    got = value(settings.load_config(plain, {field: text}), field)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize("field", LEAVES)
def test_every_field_can_be_typed_as_python_prints_it(plain: Path, field: str) -> None:
    config = settings.load_config(plain, {field: str(LEAVES[field])})
    assert config == c.Config()


def test_a_variant_is_chosen_by_name_before_its_fields_are_changed(plain: Path) -> None:
    for name, variant in c.MODELS.items():
        assert settings.load_config(plain, {"model": name}).model == variant()
    config = settings.load_config(plain, {"model.drop_path": "0.25", "model": "datar_base"})
    assert config.model == msgspec.structs.replace(c.datar_base(), drop_path=0.25)
    tiny, small = msgspec.structs.asdict(c.datar_tiny()), msgspec.structs.asdict(c.datar_small())
    assert {k for k in tiny if tiny[k] != small[k]} == {"spec", "drop_path"}


def test_a_missing_file_lists_its_neighbours(plain: Path) -> None:
    with pytest.raises(c.ConfigError) as error:
        settings.load_config(plain.with_name("plane.py"))
    assert_one_line(error, "plane.py: no such file", str(plain))
    with pytest.raises(c.ConfigError) as error:
        settings.load_config(plain.parent / "nowhere" / "a.py")
    assert_one_line(error, "no such file", "by name there are", "folder")


# A configuration that a run wrote.


def toml(tree: dict[str, Any], section: str = "") -> str:
    """Plain values as TOML; its arrays, numbers, truth values and strings are those of JSON here."""
    lines = [f"{name} = {json.dumps(item)}" for name, item in tree.items() if not isinstance(item, dict)]
    inner = ((f"{section}{name}", item) for name, item in tree.items() if isinstance(item, dict))
    return "\n".join([*lines, *(f"[{name}]\n{toml(item, f'{name}.')}" for name, item in inner)])


@pytest.mark.parametrize("suffix", ["json", "toml"])
@pytest.mark.parametrize("name", sorted(path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.py")))
def test_what_a_run_wrote_is_read_back(tmp_path, name, suffix):
    config = settings.load_config(name, {"train.epochs": "7", "data.root": "a 'b' \\ \u00e9"})
    tree = json.loads(msgspec.json.encode(config))
    path = tmp_path / f"config.{suffix}"
    if suffix == "json":
        write_json(path, msgspec.to_builtins(config))  # as `workdir.check_workdir`
    else:
        path.write_text(toml(tree), encoding="utf-8")

    def base(source: str) -> dict[str, Any]:
        raise AssertionError(f"{source}: it has the sections of its model already")

    assert settings.load_config(path, base=base) == config
    assert settings.load_config(path, {"train.epochs": "3"}, base).train.epochs == 3


def test_another_pretrained_model_brings_its_sections(tmp_path):
    write_json(tmp_path / "config.json", msgspec.to_builtins(c.Config()))
    given = {"audio": msgspec.to_builtins(c.AudioConfig(n_mels=64))}
    assert settings.load_config(tmp_path / "config.json", {"init.from": "it"}, lambda _: given).audio.n_mels == 64


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.json", "import os", "malformed|Expecting value"),
        ("c.json", '{"train": {"epochs": "many"}}', "train.epochs"),
        ("c.json", '{"train": {"epox": 1}}', "epox"),
        ("c.json", "[" * 100_000, "nested too deeply"),
        ("c.toml", "x = ", "Invalid value"),
        ("c.toml", "seed = 2026-01-01", "seed"),
        ("c.toml", "[train]\nepochs = 0", "train.epochs=0"),
        ("c.toml", "x = " + "[" * 100_000, "nested too deeply"),
        ("c.toml", "\udcff", "utf-8"),
        ("c.yaml", "", "not a Python file with get_config"),
    ],
)
def test_a_stored_configuration_that_is_wrong_is_one_line(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(c.ConfigError, match=said) as error:
        settings.load_config(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
