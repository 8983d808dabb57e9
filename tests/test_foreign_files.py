"""A name that was read stays below its folder; only regular files are opened."""

import pytest

from datar_jax.foreign_files import UnsafeName, check_name, open_regular, path_below, read_regular
from tests.hostile import NAMES, irregular_files


@pytest.mark.parametrize("name", [*NAMES.values(), ""], ids=[*NAMES, "empty"])
def test_a_hostile_name_is_refused(name, tmp_path):
    with pytest.raises(UnsafeName) as caught:
        path_below(tmp_path, name.replace("ABSOLUTE", str(tmp_path)))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "name",
    [
        "a.wav",
        "a/b c.wav",
        "./a",
        "a//b",
        "...",
        "a..b",
        "..a",
        "a\\b.wav",
        "AC\u29f8DC.wav",
        "\u2026",
        "e\u0301.wav",
        "\udcff",
    ],
)
def test_an_odd_name_is_kept(name, tmp_path):
    check_name(name)
    assert path_below(tmp_path, name) == tmp_path / name


def test_only_regular_files_are_opened(tmp_path):
    with irregular_files(tmp_path / "odd") as paths:
        assert len(paths) == 5
        for path in paths:
            with pytest.raises(OSError, match="not a file"):
                open_regular(path)
    for name in ("gone", "a\0b", "\ud800"):
        with pytest.raises(FileNotFoundError):
            open_regular(str(tmp_path / name))
    (tmp_path / "a").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link", 4) == b"1234"
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_regular(tmp_path / "a", 3)
