"""Settings without effect are refused; fields of version 0.1 are upgraded when stored and explained when typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datar_jax import config as c
from datar_jax.config import loader as settings
from datar_jax.config.migration import upgrade
from tests.helpers import assert_one_line, make_settings

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
        make_settings(kind, idle)
    assert_one_line(error, names, "has no effect", reason)


def test_an_adaptor_without_deformable_blocks_stands_on_the_spectrogram() -> None:
    for idle in ({"adaptor": "none"}, {"adaptor": "signal", "adaptor_at": "spectrogram"}, {}):
        model = c.ModelConfig(spec=("L",) * 4, **idle)  # type: ignore[arg-type]
        assert model.adaptor == idle.get("adaptor", c.ModelConfig().adaptor)


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
        assert_one_line(error, str(plain), "windows is now model.window.sizes or model.neighborhood.sizes")


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
    old_kept = {"kind": "csv", "manifest": "a.csv", "fold": 0}
    old = {**old_kept, "subset": "esc10"}
    assert upgrade({"data": old})["data"] == {**old_kept, "validation_fraction": 0.0}
