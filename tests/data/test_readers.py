"""From a folder or list to a data set: classes, columns, odd names, and errors that name file, row and column."""

import os
import textwrap

import pytest
import soundfile

from datar_jax.config import AudioConfig, ConfigError, DataConfig
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.feature_cache import open_cache
from tests.helpers import sound

AUDIO = AudioConfig(n_mels=32, hop_ms=20.0)


def write(path, seconds=0.2, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(AUDIO, seconds, seed), AUDIO.sample_rate)


def folder_of(root, classes=("cat", "dog", "owl"), clips=6):
    for c, name in enumerate(classes):
        for i in range(clips):
            write(root / name / f"{name}{i}.wav", 0.1 + 0.04 * i, seed=10 * c + i)
    return root


def table_of(root, text):
    root.mkdir(parents=True, exist_ok=True)
    (root / "manifest.csv").write_text(textwrap.dedent(text).lstrip())
    return DataConfig(root=str(root), kind="csv")


def test_a_folder_tree_gives_classes_and_counts_the_rest(tmp_path):
    folder_of(tmp_path, ("owl", "cat"), 2)
    write(tmp_path / "cat" / "deep" / "er.FLAC")
    write(tmp_path / "loose.wav")
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / "cat" / ".hidden.wav").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.wav").touch()
    (tmp_path / "docs").mkdir()
    dataset = read_dataset(DataConfig(root=str(tmp_path)))
    assert dataset.labels == ("cat", "owl")
    assert [(c.name, c.labels) for c in dataset.clips] == [
        ("cat/cat0.wav", (0,)),
        ("cat/cat1.wav", (0,)),
        ("cat/deep/er.FLAC", (0,)),
        ("owl/owl0.wav", (1,)),
        ("owl/owl1.wav", (1,)),
    ]
    notes = "\n".join(dataset.notes)
    assert "1 file is no sound" in notes
    assert "1 sound lies in" in notes
    assert "docs" in notes


def test_a_relative_root_starts_from_the_base(tmp_path):
    folder_of(tmp_path / "sounds", ("a", "b"), 1)
    assert len(read_dataset(DataConfig(root="sounds"), tmp_path)) == 2


@pytest.mark.parametrize("kind", ["folder", "csv", "esc"])
def test_a_missing_or_empty_root_is_one_line_that_names_the_field(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    for root in ("", str(tmp_path / "none"), str(tmp_path / "empty")):
        with pytest.raises(ConfigError, match=r"^data\.(root|manifest)=") as caught:
            read_dataset(DataConfig(root=root, kind=kind))
        assert "\n" not in str(caught.value)


def test_an_empty_folder_that_is_named_like_a_sound_is_reported(tmp_path):
    folder_of(tmp_path, ("a", "b"), 1)
    (tmp_path / "a" / "x.wav").mkdir()
    (tmp_path / "b" / "y.wav").mkdir()
    write(tmp_path / "b" / "y.wav" / "part.wav")  # a folder with a name of its own liking
    dataset = read_dataset(DataConfig(root=str(tmp_path)))
    assert [clip.name for clip in dataset.clips] == ["a/a0.wav", "a/x.wav", "b/b0.wav", "b/y.wav/part.wav"]
    assert open_cache(dataset, AUDIO, tmp_path / "cache").bad == (("a/x.wav", "a folder, not a file"),)


def test_odd_names_are_used_and_printed_on_one_line(tmp_path):
    names = ["cat/line\nbreak.wav", "cat/\x1b[31mred.wav", os.fsdecode(b"cat/\xff.wav"), os.fsdecode(b"\xfe/a.wav")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / "plain.wav")
        (tmp_path / "plain.wav").rename(tmp_path / name)
    (tmp_path / os.fsdecode(b"\xfd")).mkdir()
    dataset = read_dataset(DataConfig(root=str(tmp_path)))
    assert dataset.labels == ("\\udcfe", "cat")
    assert dataset.notes == ("sub-folders without a sound: \\udcfd",)
    assert sorted(dataset.where(i) for i in range(4)) == [
        "\\udcfe/a.wav",
        "cat/\\udcff.wav",
        "cat/\\x1b[31mred.wav",
        "cat/line\\nbreak.wav",
    ]
    assert (open_cache(dataset, AUDIO, tmp_path / "cache").frames == 10).all()


def test_a_folder_that_cannot_be_read_is_no_silent_loss(tmp_path, monkeypatch):
    folder_of(tmp_path, ("a", "b"), 1)
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(ConfigError, match=r"^'.*b': cannot be read \(Permission denied\)"):
        read_dataset(DataConfig(root=str(tmp_path)))


def test_a_folder_linked_into_itself_ends(tmp_path):
    folder_of(tmp_path, ("a", "b"), 1)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(read_dataset(DataConfig(root=str(tmp_path)))) == 2


def test_a_table_with_every_column(tmp_path):
    config = table_of(
        tmp_path,
        """
        path,label,fold,start,end

        x/a.wav,dog; cat,1,,
        "x/b, c.wav",owl,2,0.5,1.25
        """,
    )
    with pytest.raises(ConfigError, match="2 classes"):
        read_dataset(config)
    dataset = read_dataset(DataConfig(root=str(tmp_path), kind="csv", labels="multi"))
    assert dataset.labels == ("cat", "dog", "owl")
    assert dataset.folds == (1, 2)
    first, second = dataset.clips
    assert (first.name, first.labels, first.fold, first.start, first.end, first.row) == ("x/a.wav", (0, 1), 1, 0, 0, 3)
    assert (second.name, second.labels, second.start, second.end) == ("x/b, c.wav", (2,), 0.5, 1.25)
    assert second.path == str(tmp_path / "x/b, c.wav")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("path,class\na.wav,x\n", ["row 1", "'label'"]),
        ("path,label,strat\na.wav,x,1\n", ["row 1", "'strat'", "start"]),
        ("path,label,label\na.wav,x,1\n", ["row 1", "'label'"]),
        ("path,label\na.wav,x\nb.wav\n", ["row 3", "1 cells"]),
        ("path,label\na.wav,x\nb.wav,\n", ["row 3", "column label"]),
        ("path,label\n,x\n", ["row 2", "column path"]),
        ("path,label,fold\na.wav,x,1\nb.wav,x,one\n", ["row 3", "column fold='one'"]),
        ("path,label,fold\na.wav,x,0\n", ["row 2", "column fold='0'"]),
        ("path,label,split\na.wav,x,train\nb.wav,x,dev\n", ["row 3", "column split='dev'"]),
        ("path,label,start\na.wav,x,half\n", ["row 2", "column start='half'"]),
        ("path,label,start\na.wav,x,nan\n", ["row 2", "column start='nan'"]),
        ("path,label,start,end\na.wav,x,2,1\n", ["row 2", "column end='1'"]),
        ("path,label\na.wav,x\na.wav,y\n", ["row 3", "column path", "row 2"]),
        ("path,label,split,fold\na.wav,x,train,1\n", ["split and fold"]),
        ("path,label\n", ["manifest.csv"]),
    ],
)
def test_errors_in_a_table_name_file_row_and_column(tmp_path, text, named):
    config = table_of(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_dataset(config)
    for part in ["manifest.csv", *named]:
        assert part in str(caught.value)


def test_a_table_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_bytes(b"path,label\n\xff\xfe\x00.wav,x\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_dataset(DataConfig(root=str(tmp_path), kind="csv"))


def test_a_quote_that_is_left_open_is_named(tmp_path):
    config = table_of(tmp_path, 'path,label\na.wav,x\n"b.wav,y\n' + "c.wav,z\n" * 20_000)
    with pytest.raises(ConfigError, match=r"manifest\.csv, row 3 or below: .*is a quote left open\?$"):
        read_dataset(config)


def test_a_fold_of_five_thousand_digits_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"manifest\.csv, row 2, column fold='9+': give a whole number"):
        read_dataset(table_of(tmp_path, f"path,label,fold\na.wav,x,{'9' * 5_000}\n"))


def esc_folder(root, rows, header="filename,fold,target,category"):
    (root / "meta").mkdir(parents=True)
    (root / "audio").mkdir()
    (root / "meta" / "esc.csv").write_text("\n".join([header, *rows]) + "\n")
    return DataConfig(root=str(root), kind="esc")


def test_an_esc_list_orders_classes_by_target_and_finds_other_endings(tmp_path):
    config = esc_folder(tmp_path, ["a.wav,1,10,rain", "b.wav,2,3,zebra", "c.wav,2,3,zebra"])
    (tmp_path / "audio" / "a.wav").touch()
    (tmp_path / "audio" / "a.flac").touch()
    (tmp_path / "audio" / "b.ogg").touch()
    dataset = read_dataset(config)
    assert dataset.labels == ("zebra", "rain")
    assert [(c.name, c.labels, c.fold) for c in dataset.clips] == [
        ("audio/a.wav", (1,), 1),
        ("audio/b.ogg", (0,), 2),
        ("audio/c.wav", (0,), 2),
    ]


def test_the_esc10_subset_is_what_its_column_says(tmp_path):
    rows = ["a.wav,1,0,dog,True", "b.wav,1,5,cat,False", "c.wav,2,9,rain,True"]
    config = esc_folder(tmp_path, rows, "filename,fold,target,category,esc10")
    assert read_dataset(config).labels == ("dog", "cat", "rain")
    subset = read_dataset(DataConfig(root=str(tmp_path), kind="esc", subset="esc10"))
    assert subset.labels == ("dog", "rain")
    assert [c.labels for c in subset.clips] == [(0,), (1,)]
    assert "1 of 3 rows" in subset.notes[0]


def test_sounds_that_no_list_names_are_counted(tmp_path):
    config = table_of(tmp_path, "path,label\n./a/1.wav,x\nb//./2.wav,y\nnone/3.wav,y\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").touch()
    for name in ("a/1.wav", "a/9.flac", "a/.h.wav", "b/2.wav", "elsewhere/1.wav"):
        write(tmp_path / name)
    assert read_dataset(config).notes == ("1 sound is named by no list and left out, the first: 'a/9.flac'",)
    write(tmp_path / "a" / "8.wav")
    assert read_dataset(config).notes == ("2 sounds are named by no list and left out, the first: 'a/8.wav'",)
    config = esc_folder(tmp_path / "esc", ["a.wav,1,0,dog", "b.wav,1,1,cat"])
    for name in ("a.flac", "b.wav", "c.wav"):
        write(tmp_path / "esc" / "audio" / name)
    assert read_dataset(config).notes == ("1 sound is named by no list and left out, the first: 'audio/c.wav'",)


def test_an_esc_target_with_two_names_is_refused(tmp_path):
    config = esc_folder(tmp_path, ["a.wav,1,0,dog", "b.wav,1,0,cat"])
    with pytest.raises(ConfigError, match="row 3, column category='cat'"):
        read_dataset(config)


def linked_table(root, outside):
    (root / "link.wav").symlink_to(outside / "cat" / "cat0.wav")
    (root / "linked").symlink_to(outside)
    return table_of(root, "path,label\nlink.wav,cat\nlinked/dog/dog0.wav,dog\n")


def linked_esc(root, outside):
    (root / "meta").mkdir()
    (root / "audio").symlink_to(outside / "cat")
    (root / "meta" / "esc.csv").write_text("filename,fold,target,category\ncat0.wav,1,0,cat\ncat1.wav,2,0,cat\n")
    return DataConfig(root=str(root), kind="esc")


def linked_lists(root, outside):
    (root / "cat").mkdir()
    (root / "cat" / "link.wav").symlink_to(outside / "cat" / "cat0.wav")
    (root / "dog").symlink_to(outside / "dog")
    (root / "train.txt").write_text("cat/link.wav\n")
    (root / "test.txt").write_text("dog/dog0.wav\n")
    return DataConfig(root=str(root), train_list="train.txt", test_list="test.txt")


@pytest.mark.parametrize("linked", [linked_table, linked_esc, linked_lists])
def test_listed_links_are_followed_wherever_they_lead(linked, tmp_path):
    folder_of(tmp_path / "outside", ("cat", "dog"), 2)
    (tmp_path / "data").mkdir()
    dataset = read_dataset(linked(tmp_path / "data", tmp_path / "outside"))
    assert len(dataset) == 2 and all(open_cache(dataset, AUDIO, tmp_path / "cache").frames > 0)
