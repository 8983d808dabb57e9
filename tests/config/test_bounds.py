"""No size that a description asks for is without bound: what a stranger's model asks for would be built."""

from __future__ import annotations

import typing
from typing import Any

import pytest

from datar_jax import config as c
from datar_jax.config.mixers import MIXER_SETTINGS
from tests.helpers import assert_one_line

KINDS = [*(type(getattr(c.Config(), name)) for name in c.Config.__struct_fields__), *MIXER_SETTINGS]


def absurd(hint: Any, default: Any) -> list[Any]:
    """Values of a type that nobody means: numbers and texts without end, too many entries."""
    if hint is bool or typing.get_origin(hint) is typing.Literal:
        return []
    if hint in (int, float):
        return [hint(10**18), hint(-(10**18)), hint(10**300)]
    if hint is str:
        return ["a" * 10**6]
    if typing.get_origin(hint) is tuple:
        default = default or ((0, 0),)  # what is empty by default holds pairs
        inside = [(each, *default[1:]) for each in absurd(typing.get_args(hint)[0], default[0])]
        return [*inside, default * 1000]
    return []


CASES = [
    pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{i}")
    for kind in KINDS
    for name, hint in typing.get_type_hints(kind).items()
    if name in kind.__struct_fields__
    for i, value in enumerate(absurd(hint, getattr(kind(), name)))
]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_every_size_has_a_bound(kind: type[c.StrictStruct], name: str, value: Any) -> None:
    with pytest.raises(c.ConfigError) as error:
        kind(**{name: value})
    assert_one_line(error, f"{kind.section()}.{name}")
    assert "has no effect" not in str(error.value), "the size is refused only because nothing uses it"
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"spec": ("L" * 32, "L" * 32, "D", "D")}, "model.spec"),
        ({"window": c.WindowSettings(sizes=((64, 64), (8, 8), (8, 8), (8, 8)))}, "model.window.sizes[0]"),
        (
            {
                "spec": ("N", "S", "LD", "D"),
                "neighborhood": c.NeighborhoodSettings(sizes=((63, 63), (7, 7), (7, 7), (7, 7))),
            },
            "model.neighborhood.sizes[0]",
        ),
    ],
)
def test_what_sizes_come_to_together_has_a_bound(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(c.ConfigError) as error:
        c.ModelConfig(**wrong)
    assert_one_line(error, field, "at most")


def test_a_transform_has_a_bound() -> None:
    with pytest.raises(c.ConfigError) as error:
        c.AudioConfig(sample_rate=192_000, window_ms=100.0)
    assert_one_line(error, "audio.window_ms=100.0", "at most 42.6667 ms")


@pytest.mark.parametrize("pattern", ["(" * 4000 + ")" * 4000, "a{99999999999}", "(?:a"])
def test_an_expression_that_cannot_be_compiled_is_refused(pattern: str) -> None:
    for kind, name in ((c.DataConfig, "group"), (c.InitConfig, "allow_missing")):
        with pytest.raises(c.ConfigError) as error:
            kind(**{name: pattern})
        assert_one_line(error, f".{name}=")
