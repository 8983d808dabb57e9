"""Checks of settings: an invalid value raises one line when it is built; every file in configs/ traces a step."""

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
from datar_jax.models.spec import ModelSpec
from datar_jax.training.sharding import make_mesh, state_shardings
from datar_jax.training.train_step import abstract_state, batch_shapes, train_step
from tests.helpers import assert_one_line, make_settings

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.py"))
GROUPS = {name: type(getattr(c.Config(), name)) for name in c.Config.__struct_fields__}


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
    (
        c.ModelConfig,
        {"deformable": {"kernels": (9, 7, 5, 0), "grid": "dat2023"}},
        "model.deformable.kernels[3]=0",
        "1 or more",
    ),
    (
        c.ModelConfig,
        {"deformable": {"position": "fixed"}},
        "model.deformable.position='fixed'",
        "clips have any length",
    ),
    (
        c.ModelConfig,
        {"deformable": {"position": "fixed", "grid": "dat2022"}},
        "model.deformable.position='fixed'",
        "grid 'dat2023'",
    ),
    (c.ModelConfig, {"deformable": {"offsets": False}}, "model.deformable.offsets=False", "offset_range=0"),
    (
        c.ModelConfig,
        {"deformable": {"offsets": False, "grid": "dat2022", "position": "none"}},
        "model.deformable.offsets=False",
        "grid 'dat2023'",
    ),
    (
        c.ModelConfig,
        {"deformable": {"offsets": False, "grid": "dat2023"}},
        "model.deformable.position='table'",
        "give 'none'",
    ),
    (c.ModelConfig, {"window": {"shifts": ((1, 1),)}}, "model.window.shifts=((1, 1),)", "4 entries"),
    *(
        (
            c.ModelConfig,
            {"window": {"shifts": ((1, 1), shift, (1, 1), (1, 1))}},
            f"model.window.shifts[1]={shift}",
            "(8, 8)",
        )
        for shift in ((8, 1), (1, -1), (0, 0))
    ),
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
        make_settings(kind, wrong)
    assert_one_line(error, names + ": ", remedy)
    group = next(name for name, each in GROUPS.items() if each is kind)
    with pytest.raises(c.ConfigError) as again:
        settings.from_dict({group: msgspec.to_builtins(wrong)})
    assert str(again.value) == str(error.value), "the same line from a resolved file"


def test_a_mask_must_fit_the_mel_axis() -> None:
    with pytest.raises(c.ConfigError, match=r"augment.freq_width=129: wider than audio.n_mels=128"):
        c.Config(augment=c.AugmentConfig(freq_width=129))


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
    assert_one_line(error, *parts)


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
    [pytest.param(p, marks=[] if p.stem == "esc10" else pytest.mark.slow, id=p.stem) for p in CONFIGS],
)
def test_every_file_in_configs_traces_a_step(path: Path) -> None:
    config = settings.load_config(path)
    classes, frames = 10, config.audio.frames(config.data.window_seconds or 5.0)
    spec = ModelSpec(config, classes, frames, steps=100)
    state = abstract_state(spec)
    state_shardings(state, make_mesh(c.MeshConfig()))  # a rule covers every leaf
    batch = batch_shapes(spec, config.train.batch_size)
    after, numbers = jax.eval_shape(partial(train_step, spec), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {name: x.shape for name, x in numbers.items()} == dict.fromkeys(
        ("loss", "grad_norm", "learning_rate", "skipped"), ()
    )


def test_there_are_files_in_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize(
    ("fields", "grids"),
    [
        ({"kernels": (8, 4, 2, 1), "strides": (8, 4, 2, 1)}, ("dat2022", "dat2023")),
        ({"position": "fixed"}, ("dat2023",)),
        ({"position": "none", "offsets": False}, ("dat2023",)),
    ],
)
def test_published_grids_take_what_ours_refuses(fields: dict[str, Any], grids: tuple[str, ...]) -> None:
    for grid in ("centre", "dat2022", "dat2023"):
        settings = c.DeformableSettings(**fields, grid=grid)
        if grid in grids:
            c.ModelConfig(deformable=settings)
        else:
            with pytest.raises(c.ConfigError, match=r"^model\.deformable\.(kernels|position|offsets)"):
                c.ModelConfig(deformable=settings)


def test_shifts_of_stages_without_shifted_windows_are_not_read() -> None:
    shifts = ((0, 0), (0, 7), (9, 9), (9, 9))
    c.ModelConfig(window=c.WindowSettings(shifts=shifts))
    with pytest.raises(c.ConfigError, match=r"^model\.window\.shifts\[2\]=\(9, 9\)"):
        c.ModelConfig(spec=("L", "S", "SD", "D"), window=c.WindowSettings(shifts=shifts))
