"""Lists as people's programs write them: accents, separators, backslashes, invisible characters."""

import tracemalloc
import unicodedata
from pathlib import Path

import pytest

from datar_jax.config import ConfigError, DataConfig
from datar_jax.data.readers import read_dataset


def read(root, text, labels="single"):
    (root / "manifest.csv").write_text(text, encoding="utf-8")
    return read_dataset(DataConfig(root=str(root), kind="csv", labels=labels))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_accents_are_one_however_they_are_stored(tmp_path, form, stored):
    (tmp_path / unicodedata.normalize(stored, "über.wav")).touch()
    rows = [f"{unicodedata.normalize(form, 'über.wav')},Käuzchen", f"b.wav,{unicodedata.normalize('NFD', 'Käuzchen')}"]
    dataset = read(tmp_path, "path,label\n" + "\n".join(rows) + "\n")
    assert dataset.labels == ("Käuzchen",)
    assert Path(dataset.clips[0].path).exists() and dataset.clips[0].name == "über.wav"


@pytest.mark.parametrize("column", ["path", "label"])
@pytest.mark.parametrize("character", ["\u200b", "\x00", "\u200e", "\ufeff", "\x07", "\u00ad"])
def test_invisible_characters_are_refused_by_name(tmp_path, column, character):
    row = {"path": "a.wav", "label": "dog"}
    row[column] = f"x{character}y"
    with pytest.raises(ConfigError, match=rf"row 3, column {column}=.*U\+{ord(character):04X}; remove"):
        read(tmp_path, f"path,label\nb.wav,cat\n{row['path']},{row['label']}\n")


def test_emoji_and_joined_scripts_are_class_names(tmp_path):
    names = ("👩\u200d🚒", "می\u200cخ")
    assert set(read(tmp_path, f"path,label\na.wav,{names[0]}\nb.wav,{names[1]}\n").labels) == set(names)


@pytest.mark.parametrize(("separator", "said"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_other_separators_are_named(tmp_path, separator, said):
    text = "\n".join(separator.join(row) for row in (("path", "label"), ("a.wav", "dog"))) + "\n"
    with pytest.raises(ConfigError, match=f"divided by {said}: save it with commas"):
        read(tmp_path, text)


def test_a_backslash_is_refused_with_the_remedy_unless_it_is_in_the_name(tmp_path):
    with pytest.raises(ConfigError, match=r"row 2, column path=.*give / in place of the backslash"):
        read(tmp_path, "path,label\naud\\a.wav,dog\n")
    (tmp_path / "aud\\a.wav").touch()
    assert read(tmp_path, "path,label\naud\\a.wav,dog\n").clips[0].name == "aud\\a.wav"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.csv").write_text("path,label\na.wav,dog\n")
    assert read_dataset(DataConfig(root="~/data", kind="csv")).labels == ("dog",)


def test_background_clips_have_no_label_where_there_may_be_several(tmp_path):
    dataset = read(tmp_path, "path,label\na.wav,dog;cat\nb.wav,\nc.wav,dog\n", "multi")
    assert [clip.labels for clip in dataset.clips] == [(0, 1), (), (1,)]
    with pytest.raises(ConfigError, match=r"row 3, column label=''.*data\.labels='multi'"):
        read(tmp_path, "path,label\na.wav,dog\nb.wav,\n")
    with pytest.raises(ConfigError, match="no row has a label"):
        read(tmp_path, "path,label\na.wav,\nb.wav,\n", "multi")


def test_memory_grows_as_the_list(tmp_path):
    """The shortest rows take the most for each of their bytes; docs/guides/reliability.md states the bound."""
    path = tmp_path / "manifest.csv"
    digits = "0123456789abcdefghijklmnop"
    path.write_text("path,label\n" + "".join(f"{a}{b}{c},x\n" for a in digits for b in digits for c in digits))
    tracemalloc.start()
    try:
        assert len(read_dataset(DataConfig(root=str(tmp_path), kind="csv"))) == len(digits) ** 3
        assert tracemalloc.get_traced_memory()[1] < 200 * path.stat().st_size
    finally:
        tracemalloc.stop()
