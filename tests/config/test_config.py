"""Settings: a wrong one fails at birth in one line; every file in configs/ builds and traces a step."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax import config as c
from datar_jax.config import loader as settings
from datar_jax.config.migration import upgrade
from datar_jax.models.spec import Task
from datar_jax.training.sharding import make_mesh, state_shardings
from datar_jax.training.train_step import abstract_state, batch_shapes, train_step

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.py"))
GROUPS = {name: type(getattr(c.Config(), name)) for name in c.Config.__struct_fields__}


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


def says(error: pytest.ExceptionInfo[c.ConfigError], *parts: str) -> None:
    """The error is one line that holds every part."""
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, f"{part!r} is missing in: {text}"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file that gives the default configuration."""
    path = tmp_path / "plain.py"
    path.write_text("from datar_jax.config import Config\n\n\ndef get_config():\n    return Config()\n")
    return path


def made(kind: type, values: dict[str, Any]) -> msgspec.Struct:
    """Settings of a kind; a dict among the values stands for the settings of a mixer."""
    mixers = {field: type(getattr(c.ModelConfig(), field)) for field in ("window", "neighborhood", "deformable")}
    return kind(**{name: mixers[name](**x) if isinstance(x, dict) else x for name, x in values.items()})


# One wrong value per check: the group, what is set, the field that is named, the remedy.
WRONG: list[tuple[type, dict[str, Any], str, str]] = [
    (c.AudioConfig, {"sample_rate": 999}, "audio.sample_rate=999", "1000 to 192000"),
    (c.AudioConfig, {"sample_rate": 192_001}, "audio.sample_rate=192001", "1000 to 192000"),
    (c.AudioConfig, {"hop_ms": 0.0}, "audio.hop_ms=0.0", "at least one sample"),
    (c.AudioConfig, {"window_ms": 9.0}, "audio.window_ms=9.0", "at least audio.hop_ms"),
    (c.AudioConfig, {"n_mels": 31}, "audio.n_mels=31", "at least 32"),
    (c.AudioConfig, {"fmin": -1.0}, "audio.fmin=-1.0", "0 or more"),
    (c.AudioConfig, {"fmin": 4000.0, "fmax": 4000.0}, "audio.fmin=4000.0", "less than audio.fmax (4000 Hz)"),
    (c.AudioConfig, {"fmin": math.nan}, "audio.fmin=nan", "finite number"),
    (c.AudioConfig, {"fmax": 8001.0}, "audio.fmax=8001.0", "at most half of audio.sample_rate (8000 Hz)"),
    (c.AudioConfig, {"floor_db": 0.0}, "audio.floor_db=0.0", "-200 to 0"),
    (c.AudioConfig, {"floor_db": -201.0}, "audio.floor_db=-201.0", "-200 to 0"),
    (c.DataConfig, {"test_fraction": 1.0}, "data.test_fraction=1.0", "between 0 and 1"),
    (c.DataConfig, {"test_fraction": 0.0}, "data.test_fraction=0.0", "between 0 and 1"),
    (c.DataConfig, {"max_bad_fraction": 1.1}, "data.max_bad_fraction=1.1", "0 to 1"),
    (c.DataConfig, {"kind": "csv", "fold": -1}, "data.fold=-1", "0 for the whole"),
    (c.DataConfig, {"kind": "csv", "validation_fold": -1}, "data.validation_fold=-1", "or 0"),
    (
        c.DataConfig,
        {"kind": "csv", "fold": 2, "validation_fold": 2},
        "data.validation_fold=2",
        "data.fold=2 is the test fold",
    ),
    (c.DataConfig, {"train_list": "a.txt"}, "data.test_list=''", "both lists"),
    (c.DataConfig, {"test_list": "a.txt"}, "data.train_list=''", "both lists"),
    (c.DataConfig, {"window_seconds": -1.0}, "data.window_seconds=-1.0", "or 0"),
    (c.DataConfig, {"workers": -1}, "data.workers=-1", "0 or more"),
    (c.DataConfig, {"threads": 0}, "data.threads=0", "at least 1"),
    (c.DataConfig, {"kind": "esc", "subset": "esc5"}, "data.subset='esc5'", "'esc10' or nothing"),
    (c.DataConfig, {"group": "(a"}, "data.group='(a'", "regular expression"),
    (c.ModelConfig, {"dims": ()}, "model.dims=()", "at least one stage"),
    (c.ModelConfig, {"spec": ("L",)}, "model.spec=('L',)", "4 entries"),
    (c.ModelConfig, {"heads": (1, 2, 4)}, "model.heads=(1, 2, 4)", "4 entries"),
    (c.ModelConfig, {"window": {"sizes": ((8, 8),)}}, "model.window.sizes=((8, 8),)", "4 entries"),
    (c.ModelConfig, {"deformable": {"groups": (1,)}}, "model.deformable.groups=(1,)", "4 entries"),
    (c.ModelConfig, {"deformable": {"strides": (1,)}}, "model.deformable.strides=(1,)", "4 entries"),
    (c.ModelConfig, {"deformable": {"kernels": (3,)}}, "model.deformable.kernels=(3,)", "4 entries"),
    (c.ModelConfig, {"spec": ("L", "S", "LX", "D")}, "model.spec[2]='LX'", "letters L (window)"),
    (c.ModelConfig, {"spec": ("L", "", "L", "D")}, "model.spec[1]=''", "letters L (window)"),
    (c.ModelConfig, {"heads": (1, 2, 5, 8)}, "model.heads[2]=5", "does not divide model.dims[2]=128"),
    (c.ModelConfig, {"heads": (1, 0, 4, 8)}, "model.heads[1]=0", "does not divide model.dims[1]=64"),
    (
        c.ModelConfig,
        {"window": {"sizes": ((8, 8), (8, 0), (8, 8), (4, 8))}},
        "model.window.sizes[1]=(8, 0)",
        "positive",
    ),
    (
        c.ModelConfig,
        {"spec": ("L", "N", "LD", "D"), "neighborhood": {"sizes": ((7, 7), (8, 7), (7, 7), (7, 7))}},
        "model.neighborhood.sizes[1]=(8, 7)",
        "odd sizes: model.spec[1]='N'",
    ),
    (
        c.ModelConfig,
        {"deformable": {"groups": (1, 1, 3, 4)}},
        "model.deformable.groups[2]=3",
        "does not divide model.heads[2]=4",
    ),
    (c.ModelConfig, {"deformable": {"strides": (8, 4, 0, 1)}}, "model.deformable.strides[2]=0", "1 or more"),
    (c.ModelConfig, {"deformable": {"kernels": (9, 7, 5, 4)}}, "model.deformable.kernels[3]=4", "odd"),
    (c.ModelConfig, {"deformable": {"offset_range": math.inf}}, "model.deformable.offset_range=inf", "finite number"),
    (c.ModelConfig, {"mlp_ratio": 0}, "model.mlp_ratio=0", "1 or more"),
    (c.ModelConfig, {"dropout": 1.0}, "model.dropout=1.0", "less than 1"),
    (c.ModelConfig, {"drop_path": -0.1}, "model.drop_path=-0.1", "0 or more"),
    (c.ModelConfig, {"num_classes": -1}, "model.num_classes=-1", "as the data have"),
    *(
        (c.AugmentConfig, {name: -1}, f"augment.{name}=-1", "0 (off) or more")
        for name in ("freq_masks", "freq_width", "time_masks", "time_width", "freq_shift")
    ),
    *((c.AugmentConfig, {name: -1.0}, f"augment.{name}=-1.0", "0 (off) or more") for name in ("gain_db", "mixup")),
    (c.AugmentConfig, {"stretch": 1.0}, "augment.stretch=1.0", "less than 1"),
    (c.AugmentConfig, {"background": 1.5}, "augment.background=1.5", "0 to 1"),
    (c.AugmentConfig, {"background_snr_db": (5.0, 1.0)}, "augment.background_snr_db=(5.0, 1.0)", "low <= high"),
    (c.OptimConfig, {"learning_rate": 0.0}, "optim.learning_rate=0.0", "more than 0"),
    (c.OptimConfig, {"learning_rate": math.nan}, "optim.learning_rate=nan", "finite number"),
    (c.OptimConfig, {"final_lr_ratio": 1.1}, "optim.final_lr_ratio=1.1", "0 to 1"),
    (c.OptimConfig, {"warmup": 1.0}, "optim.warmup=1.0", "below 1"),
    (c.OptimConfig, {"weight_decay": -1.0}, "optim.weight_decay=-1.0", "0 or more"),
    (c.OptimConfig, {"beta2": 1.0}, "optim.beta2=1.0", "less than 1"),
    (c.OptimConfig, {"clip_norm": -1.0}, "optim.clip_norm=-1.0", "0 (off) or more"),
    (c.OptimConfig, {"ema": 1.0}, "optim.ema=1.0", "less than 1"),
    (c.OptimConfig, {"label_smoothing": 1.0}, "optim.label_smoothing=1.0", "below 1"),
    *(
        (c.TrainConfig, {name: 0}, f"train.{name}=0", "1 or more")
        for name in (
            "epochs",
            "batch_size",
            "grad_accum_steps",
            "eval_batch_size",
            "checkpoint_every_epochs",
            "log_every_steps",
            "max_skipped",
        )
    ),
    (c.MeshConfig, {"fsdp": 0}, "mesh.fsdp=0", "1 or more"),
    (c.MeshConfig, {"data": 0}, "mesh.data=0", "-1 for all"),
    (c.TrainConfig, {"evaluate_every_epochs": -1}, "train.evaluate_every_epochs=-1", "0 or more"),
    (c.TrainConfig, {"seed": -1}, "train.seed=-1", "0 or more"),
    (c.TrainConfig, {"grad_accum_steps": 5}, "train.grad_accum_steps=5", "does not divide train.batch_size=32"),
]


@pytest.mark.parametrize("kind, wrong, names, remedy", WRONG, ids=lambda x: x if isinstance(x, str) else "")
def test_a_wrong_value_names_field_value_and_remedy(kind: type, wrong: dict[str, Any], names: str, remedy: str) -> None:
    with pytest.raises(c.ConfigError) as error:
        made(kind, wrong)
    says(error, names + ": ", remedy)
    group = next(name for name, each in GROUPS.items() if each is kind)
    with pytest.raises(c.ConfigError) as again:
        settings.from_dict({group: msgspec.to_builtins(wrong)})
    assert str(again.value) == str(error.value), "the same line from a resolved file"


def test_windows_must_fit_their_maps() -> None:
    with pytest.raises(c.ConfigError) as error:
        c.Config(audio=c.AudioConfig(n_mels=64))
    says(error, "model.window.sizes[2]=(8, 8)", "4 frequency rows", "audio.n_mels=64", "at most 4")
    with pytest.raises(c.ConfigError) as error:
        c.Config(data=c.DataConfig(window_seconds=0.25))
    says(error, "model.window.sizes[0]=(8, 8)", "7 time columns", "data.window_seconds=0.25", "at most 7")
    c.Config(data=c.DataConfig(window_seconds=1.27))  # 127 frames: the maps have 32, 16, 8 columns; the last is all D
    short = c.Config(data=c.DataConfig(window_seconds=0.0))  # the length is the data's
    with pytest.raises(c.ConfigError) as error:
        c.check_windows(short, 112, "the longest clip")
    says(error, "model.window.sizes[2]=(8, 8)", "7 time columns", "the longest clip")
    wide = ((8, 8), (8, 8), (8, 8), (99, 99))
    c.Config(model=c.ModelConfig(window=c.WindowSettings(sizes=wide)))  # no block of the last stage has a window
    with pytest.raises(c.ConfigError, match=r"augment.freq_width=129: wider than audio.n_mels=128"):
        c.Config(augment=c.AugmentConfig(freq_width=129))


# What a person types over a file: field, text, parts of the line that answers.
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
    says(error, *parts)


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


# A setting that does nothing: what is set, the field that is named, the reason.
IDLE: list[tuple[type, dict[str, Any], str, str]] = [
    (c.ModelConfig, {"spec": ("L",) * 4, "deformable": {"groups": (1,) * 4}}, "model.deformable.groups", "no D block"),
    (
        c.ModelConfig,
        {"spec": ("L",) * 4, "deformable": {"strides": (1,) * 4}},
        "model.deformable.strides",
        "no D block",
    ),
    (
        c.ModelConfig,
        {"spec": ("L",) * 4, "deformable": {"kernels": (1,) * 4}},
        "model.deformable.kernels",
        "no D block",
    ),
    (
        c.ModelConfig,
        {"spec": ("L",) * 4, "deformable": {"position": "none"}},
        "model.deformable.position",
        "no D block",
    ),
    (c.ModelConfig, {"spec": ("L",) * 4, "deformable": {"offset_range": 1.0}}, "model.deformable.offset_range", "no D"),
    (c.ModelConfig, {"spec": ("N",) * 4, "deformable": {"grid": "dat2023"}}, "model.deformable.grid", "no D block"),
    (c.ModelConfig, {"spec": ("D",) * 4, "window": {"sizes": ((4, 4),) * 4}}, "model.window.sizes", "no L or S block"),
    (c.ModelConfig, {"neighborhood": {"fill": True}}, "model.neighborhood.fill=True", "no N block"),
    (c.ModelConfig, {"spec": ("L",) * 4, "adaptor": "signal"}, "model.adaptor='signal'", "no D block"),
    (c.ModelConfig, {"spec": ("L",) * 4, "adaptor_at": "both"}, "model.adaptor_at='both'", "give 'spectrogram'"),
    (c.ModelConfig, {"adaptor": "none", "adaptor_at": "both"}, "model.adaptor_at='both'", "model.adaptor='none'"),
    (c.DataConfig, {"manifest": "a.csv"}, "data.manifest='a.csv'", "reads no manifest"),
    (c.DataConfig, {"kind": "csv", "subset": "esc10"}, "data.subset='esc10'", "no subsets"),
    (c.DataConfig, {"kind": "esc", "train_list": "a", "test_list": "b"}, "data.train_list='a'", "reads no lists"),
    (c.DataConfig, {"kind": "esc", "test_fraction": 0.5}, "data.test_fraction=0.5", "tests on a fold"),
    (
        c.DataConfig,
        {"train_list": "a", "test_list": "b", "test_fraction": 0.5},
        "data.test_fraction=0.5",
        "names the test clips",
    ),
    (c.DataConfig, {"fold": 0}, "data.fold=0", "no folds"),
    (c.DataConfig, {"validation_fold": 2}, "data.validation_fold=2", "no folds"),
]


@pytest.mark.parametrize("kind, idle, names, reason", IDLE, ids=lambda x: x if isinstance(x, str) else "")
def test_a_setting_without_effect_is_refused(kind: type, idle: dict[str, Any], names: str, reason: str) -> None:
    with pytest.raises(c.ConfigError) as error:
        made(kind, idle)
    says(error, names, "has no effect", reason)


def test_an_adaptor_without_deformable_blocks_stands_on_the_spectrogram() -> None:
    for idle in ({"adaptor": "none"}, {"adaptor": "signal", "adaptor_at": "spectrogram"}, {}):
        c.ModelConfig(spec=("L",) * 4, **idle)  # type: ignore[arg-type]


def test_a_typed_spec_resets_the_mixers_it_drops_but_not_what_is_typed(plain: Path) -> None:
    typed = {"model": "datar_tiny", "model.spec": "L,S,LS,S"}
    assert settings.load_config(plain, typed).model.deformable == c.DeformableSettings()
    with pytest.raises(c.ConfigError, match=r"model\.deformable\.groups=\(1, 1, 1, 1\): has no effect"):
        settings.load_config(plain, {**typed, "model.deformable.groups": "1,1,1,1"})


def test_a_file_with_an_old_field_name_names_the_new_one(plain: Path) -> None:
    for call in ("ModelConfig(windows=((8, 8),))", "msgspec.structs.replace(ModelConfig(), windows=((8, 8),))"):
        plain.write_text(
            "import msgspec\nfrom datar_jax.config import Config, ModelConfig\n\n"
            f"def get_config():\n    return Config(model={call})\n"
        )
        with pytest.raises(c.ConfigError) as error:
            settings.load_config(plain)
        says(error, str(plain), "windows is now model.window.sizes or model.neighborhood.sizes")


@pytest.mark.parametrize(
    "old, new",
    [
        (
            {"spec": ["LS", "N", "D"], "windows": [[4, 4], [3, 3], [2, 2]], "groups": [1, 1, 2], "grid": "dat2023"},
            {
                "window": {"sizes": [[4, 4], [3, 3], [2, 2]]},
                "neighborhood": {"sizes": [[4, 4], [3, 3], [2, 2]], "fill": True},
                "deformable": {"groups": [1, 1, 2], "grid": "dat2023"},
            },
        ),
        (
            {"spec": ["L"], "windows": [[4, 4]], "groups": [2], "position": "none", "sampler": "hat"},
            {"window": {"sizes": [[4, 4]]}},
        ),
        (
            {"spec": ["L"], "windows": [[4, 4]], "adaptor": "both", "adaptor_at": "both"},
            {"window": {"sizes": [[4, 4]]}, "adaptor": "both", "adaptor_at": "spectrogram"},
        ),
        (
            {"spec": ["L"], "windows": [[4, 4]], "adaptor": "signal", "adaptor_at": "block"},
            {"window": {"sizes": [[4, 4]]}, "adaptor_at": "block"},
        ),
        ({"spec": ["D"], "strides": [1], "adaptor": "none", "adaptor_at": "both"}, {"deformable": {"strides": [1]}}),
    ],
)
def test_a_stored_model_of_version_0_1_is_upgraded(old: dict[str, Any], new: dict[str, Any]) -> None:
    got = upgrade({"model": old})["model"]
    assert {name: x for name, x in got.items() if name not in ("spec", "adaptor") or name in new} == new
    assert got["spec"] == old["spec"] and upgrade({"model": got}) == {"model": got}


def test_stored_data_settings_without_effect_are_dropped() -> None:
    old = {"kind": "csv", "manifest": "a.csv", "subset": "esc10", "fold": 0}
    assert upgrade({"data": old})["data"] == {"kind": "csv", "manifest": "a.csv", "fold": 0}


def test_a_missing_file_lists_its_neighbours(plain: Path) -> None:
    with pytest.raises(c.ConfigError) as error:
        settings.load_config(plain.with_name("plane.py"))
    says(error, "plane.py: no such file", str(plain))
    with pytest.raises(c.ConfigError) as error:
        settings.load_config(plain.parent / "nowhere" / "a.py")
    says(error, "no file there")


@pytest.mark.parametrize(
    "tree, parts",
    [
        ({"train": {"epochs": "many"}}, ["int", "str", "train.epochs"]),
        ({"train": {"epochz": 1}}, ["unknown field", "epochz", "train"]),
        ({"model": {"heads": [1, 2, 4, "x"]}}, ["model.heads[3]"]),
        ({"model": {"deformable": {"grid": "center"}}}, ["center", "model.deformable.grid"]),
        ({"model": {"windows": []}}, ["`windows`", "is now model.window.sizes or model.neighborhood.sizes"]),
        ({"train": {"accumulate": 2}}, ["`accumulate`", "is now train.grad_accum_steps"]),
        ({"trian": {}}, ["unknown field", "trian"]),
        ({"train": 3}, ["train"]),
    ],
)
def test_a_resolved_file_that_does_not_fit_is_refused(tree: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(c.ConfigError) as error:
        settings.from_dict(tree)
    says(error, *parts)


@pytest.mark.parametrize(
    "settings", [c.Config(), *(kind() for kind in GROUPS.values())], ids=lambda s: type(s).__name__
)
def test_settings_are_frozen_and_hashable(settings: msgspec.Struct) -> None:
    assert hash(settings) == hash(msgspec.structs.replace(settings))
    for name in settings.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(settings, name, None)


@given(
    model=st.sampled_from(list(c.MODELS.values())),
    seconds=st.sampled_from([0.0, 5.0, 2.5]),
    rate=st.floats(1e-9, 10.0),
    group=st.sampled_from(["", r"(\d+)-", r"a\\b[^/]*"]),
    snr=st.tuples(st.floats(-50, 0), st.floats(0, 50)),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_configuration_survives_json(
    model: Any, seconds: float, rate: float, group: str, snr: tuple[float, float], seed: int
) -> None:
    config = c.Config(
        data=c.DataConfig(window_seconds=seconds, group=group),
        model=model(),
        augment=c.AugmentConfig(background_snr_db=snr),
        optim=c.OptimConfig(learning_rate=rate),
        train=c.TrainConfig(seed=seed),
    )
    tree = msgspec.to_builtins(config)
    again = settings.from_dict(json.loads(json.dumps(tree)))
    assert again == config and hash(again) == hash(config)
    assert msgspec.to_builtins(again) == tree


@pytest.mark.parametrize(
    "rate, window, hop, fft", [(16_000, 400, 160, 512), (32_000, 800, 320, 1024), (8_000, 200, 80, 256)]
)
def test_audio_lengths_in_samples(rate: int, window: int, hop: int, fft: int) -> None:
    audio = c.AudioConfig(sample_rate=rate)
    assert (audio.win_length, audio.hop_length, audio.n_fft, audio.highest) == (window, hop, fft, rate / 2)
    assert [audio.frames(s) for s in (0.0, 0.01, 1.0, 5.0, 30.0)] == [1, 1, 100, 500, 3000]
    assert c.AudioConfig(sample_rate=rate, window_ms=32.0).n_fft == round(0.032 * rate), "a power of two is its own"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_file_in_configs_is_stored_and_read_back(path: Path) -> None:
    config = settings.load_config(path)
    assert settings.from_dict(json.loads(json.dumps(msgspec.to_builtins(config)))) == config


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.stem in ("esc10", "audioset") else pytest.mark.slow, id=p.stem) for p in CONFIGS],
)
def test_every_file_in_configs_traces_a_step(path: Path) -> None:
    config = settings.load_config(path)
    classes, frames = 10, config.audio.frames(config.data.window_seconds or 5.0)
    task = Task(config, classes, frames, steps=100)
    state = abstract_state(task)
    state_shardings(state, make_mesh(c.MeshConfig()))  # a rule covers every leaf
    batch = batch_shapes(task, config.train.batch_size)
    after, numbers = jax.eval_shape(partial(train_step, task), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {name: x.shape for name, x in numbers.items()} == dict.fromkeys(
        ("loss", "grad_norm", "learning_rate", "skipped"), ()
    )


def test_there_are_files_in_configs() -> None:
    assert CONFIGS
