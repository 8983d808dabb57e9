"""Lists of VGGSound, Kinetics-Sounds, EPIC and AudioSet: what they say, in every form in which they are published."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax.config import ConfigError
from datar_jax.data.datasets import CORPORA
from datar_jax.data.datasets.kinetics_sounds import CLASSES
from datar_jax.data.prepare.match_files import match_files
from datar_jax.filesystem import storage_path
from tests.data.datasets.published_lists import (
    LISTS,
    PUBLISHED,
    SOUNDS_HEADER,
    put,
    read,
    said,
    where,
)


def test_vggsound(tmp_path: Path) -> None:
    listing = read("vggsound", tmp_path)
    classes = ("bee, wasp, etc. buzzing", "people marching", "waterfall burbling", "zebra braying")
    assert listing.heads[0].classes == classes
    first, _, third = listing.segments
    assert (first.id, first.labels, *where(first)[:5]) == (
        "---g-f_I2yQ_000001",
        (1,),
        "test",
        None,
        "---g-f_I2yQ",
        1.0,
        11.0,
    )
    assert (third.labels, third.split, third.start, third.end, third.row) == ((0,), "train", 120.0, 130.0, 3)
    assert listing.notes == ("4 classes, not 309: is a list cut short?",)


@given(
    rows=st.lists(
        st.tuples(
            st.text("-_aZ9", min_size=11, max_size=11), st.integers(0, 999_999), st.integers(0, 308), st.booleans()
        ),
        min_size=2,
        unique_by=lambda row: row[0],
    )
)
def test_vggsound_says_the_same_in_either_form(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, int, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    one, two = folder / "one", folder / "two"
    stat = "".join(f'"class {i}, loud",{i},x\n' for i in range(309))
    both = "".join(f'{v},{s},"class {c}, loud",{"test" if t else "train"}\n' for v, s, c, t in rows)
    put(one, {"stat.csv": stat, "vggsound.csv": both})
    put(two, {"stat.csv": stat})
    for split in ("train", "test"):
        text = "".join(f'{v}_{s:06d}.mp4,"class {c}, loud"\n' for v, s, c, t in rows if t == (split == "test"))
        (two / f"{split}.csv").write_text(text)
    first, second = CORPORA["vggsound"].read(one), CORPORA["vggsound"].read(two)
    assert said(first) == said(second)
    assert len(first.segments) == len(rows)
    assert first.notes == second.notes == ()


def test_kinetics_sounds(tmp_path: Path) -> None:
    listing = read("kinetics_sounds", tmp_path)
    assert listing.heads[0].classes == CLASSES and len(CLASSES) == 31 and list(CLASSES) == sorted(set(CLASSES))
    a, b, c, _ = listing.segments
    assert (a.id, a.labels, *where(a)[:5]) == (
        "--4-0ihtnBU_000058_000068",
        (CLASSES.index("dribbling basketball"),),
        "train",
        None,
        "--4-0ihtnBU",
        58.0,
        68.0,
    )
    assert (b.recording, b.start) == ("-1IlTIWPN_4", 27.0)
    assert (c.id, c.split, c.start, c.end) == ("-3Mwkq-7TV4_000002_000012", "test", 2.0, 12.0)


KINETICS = {
    "train.csv": "label,youtube_id,time_start,time_end,split\nplaying guitar,---QUuC4vJs,84,94,train\n"
    "washing feet,--GkrdYZ9Tc,0,10,train\n",
    "val.csv": "label,youtube_id,time_start,time_end,split,is_cc\nsinging,--nQbRBEz2s,104,114,val,0\n",
}


def test_kinetics_400_is_filtered_by_class(tmp_path: Path) -> None:
    listing = CORPORA["kinetics_sounds"].read(put(tmp_path, KINETICS))
    a, b = listing.segments
    assert (a.id, CLASSES[a.labels[0]], a.split) == ("---QUuC4vJs_000084_000094", "playing guitar", "train")
    assert (b.id, CLASSES[b.labels[0]], b.split) == ("--nQbRBEz2s_000104_000114", "singing", "test")
    assert "val.csv is the test split" in listing.notes
    assert "train.csv: 1 row is left out, their action is none of the classes (the first: row 3)" in listing.notes
    assert any(note.startswith("classes that no row has: blowing nose, ") for note in listing.notes)


def test_a_test_list_of_kinetics_makes_validation_what_it_is(tmp_path: Path) -> None:
    test = "label,youtube_id,time_start,time_end,split\nsinging,--1QbRBEz2s,1,11,test\n"
    listing = CORPORA["kinetics_sounds"].read(put(tmp_path, {**KINETICS, "test.csv": test}))
    assert [s.split for s in listing.segments] == ["train", "validation", "test"]
    unlabelled = "youtube_id,time_start,time_end,split\n--1QbRBEz2s,1,11,test\n"
    listing = CORPORA["kinetics_sounds"].read(put(tmp_path, {"test.csv": unlabelled}))
    assert [s.split for s in listing.segments] == ["train", "test"]
    assert "test.csv has no labels: it is not read" in listing.notes


@pytest.mark.parametrize("name, text", [("classes.txt", "singing\r\nplaying guitar\n"), ("classes.csv", "")])
def test_other_classes_of_kinetics_sounds(name: str, text: str, tmp_path: Path) -> None:
    text = text or "class,note\nsinging,\nplaying guitar,\n"
    listing = CORPORA["kinetics_sounds"].read(put(tmp_path, {**KINETICS, name: text}))
    assert listing.heads[0].classes == ("singing", "playing guitar")
    assert [s.labels for s in listing.segments] == [(1,), (0,)]
    assert tmp_path / name in listing.lists


def test_epic_kitchens_has_two_heads(tmp_path: Path) -> None:
    listing = read("epic_kitchens", tmp_path, EPIC_100_test_timestamps="narration_id\nP01_101_0\n")
    verb, noun = listing.heads
    assert (verb.name, verb.classes) == ("verb", ("take", "put", "wash", "open"))
    assert (noun.name, noun.classes) == ("noun", ("tap", "spoon", "plate", "cupboard"))
    names = [(verb.classes[s.labels[0]], noun.classes[s.labels[1] - 4]) for s in listing.segments]
    assert names == [("open", "cupboard"), ("take", "plate"), ("put", "plate")]
    a, b, c = listing.segments
    assert (a.id, *where(a)[:5]) == ("P01_01_0", "train", None, "P01_01", 0.14, 3.37)
    assert (b.split, b.start, b.end) == ("test", 0.0, 1.89)
    assert (c.start, c.end) == (3721.56, 3722.45)


def test_lists_without_labels_are_reported(tmp_path: Path) -> None:
    for name, file in [
        ("epic_kitchens", "EPIC_100_test_timestamps.csv"),
        ("epic_sounds", "EPIC_Sounds_recognition_test_timestamps.csv"),
    ]:
        put(tmp_path / name, {file: "video_id\nP01_101\n"})
        assert f"{file} has no labels: it is not read" in read(name, tmp_path / name).notes


def test_epic_sounds(tmp_path: Path) -> None:
    listing = read("epic_sounds", tmp_path)
    assert listing.heads[0].classes == ("ceramic / wood collision", "rustle")
    a, _, c = listing.segments
    assert (a.id, a.labels, *where(a)[:5]) == ("P01_11_1", (1,), "train", None, "P01_11", 3.065, 14.447)
    assert (c.labels, c.split, c.start, c.end) == ((0,), "test", 2.069, 2.993)


def test_epic_sounds_by_sample_or_by_clock(tmp_path: Path) -> None:
    by_sample = read("epic_sounds", tmp_path / "a", EPIC_Sounds_train=SOUNDS_HEADER + SAMPLES)
    header = SOUNDS_HEADER.replace("start_sample,stop_sample,", "")
    clocks = header + SAMPLES.replace("73561,346728,", "")
    by_clock = read("epic_sounds", tmp_path / "b", EPIC_Sounds_train=clocks)
    assert (by_sample.segments[0].start, by_clock.segments[0].start) == (73561 / 24_000, 3.065)
    assert by_sample.segments[0].end == by_clock.segments[0].end == 14.447


SAMPLES = "P01_11_1,P01,P01_11,00:00:03.065,00:00:14.447,73561,346728,paper rustle,rustle,1\n"


def test_a_class_number_that_no_row_has_keeps_its_place(tmp_path: Path) -> None:
    listing = read("epic_sounds", tmp_path, EPIC_Sounds_train=SOUNDS_HEADER + SAMPLES.replace("rustle,1", "zip,3"))
    assert listing.heads[0].classes == ("ceramic / wood collision", "class 1", "class 2", "zip")
    assert "classes that no row has: 1, 2" in listing.notes


def test_a_segment_without_length_is_left_out(tmp_path: Path) -> None:
    text = SOUNDS_HEADER + SAMPLES + SAMPLES.replace("P01_11_1", "P01_11_9")
    text = text[: text.rindex("00:00:14.447")] + text[text.rindex("00:00:14.447") :].replace("346728", "73561")
    text = text[::-1].replace("00:00:14.447"[::-1], "00:00:03.065"[::-1], 1)[::-1]
    listing = read("epic_sounds", tmp_path, EPIC_Sounds_train=text)
    assert [s.id for s in listing.segments] == ["P01_11_1", "P01_11_0"]
    assert any("1 row is left out, they end where they start" in note for note in listing.notes)


@pytest.mark.parametrize("wrong", ["74000", "0", "146000"])
def test_sample_numbers_that_contradict_the_timestamps_are_refused(tmp_path: Path, wrong: str) -> None:
    text = SOUNDS_HEADER + SAMPLES.replace("73561", wrong)
    with pytest.raises(ConfigError, match=rf"row 2, column start_sample='{wrong}': .* start_timestamp says 3\.065 s"):
        read("epic_sounds", tmp_path, EPIC_Sounds_train=text)
    read("epic_sounds", tmp_path, EPIC_Sounds_train=SOUNDS_HEADER + SAMPLES.replace("73561", "73570"))


@pytest.mark.parametrize("prefix", ["", "Y"])
@pytest.mark.parametrize(
    ("start", "names"),
    [
        (30.0, ("30_40", "30.000_40.000", "30.0_40.0", "30.00", "000030", "000030_000040", "30000_40000")),
        (0.5, ("0.5_10.5", "0.500_10.500", "0.50", "000000_000010", "0_10", "500_10500")),
        (112.25, ("112.25_122.25", "112.250", "112250_122250")),
    ],
)
def test_audioset_files_of_other_downloaders_are_found(
    tmp_path: Path, prefix: str, start: float, names: tuple[str, ...]
) -> None:
    listing = read("audioset", tmp_path / "lists")
    first = dataclasses.replace(listing.segments[0], start=start, end=start + 10)
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{prefix}-5-vmt2iKT0_{name}.wav").touch()
        others = ("Y-5-vmt2iKT0_77.5_87.5.wav", "-5-vmt2iKT0_30.01_40.wav")
        for other in others:
            (folder / other).touch()
        lines: list[str] = []
        found = match_files(
            dataclasses.replace(listing, segments=(first,)), storage_path(str(folder), "--audio"), lines.append
        )
        assert [(file.name, file.cut) for file in found if file] == [(f"{prefix}-5-vmt2iKT0_{name}.wav", True)]
        assert lines == [f"2 sounds are named by no list and left out, the first: {min(others)!r}"]


def test_audioset(tmp_path: Path) -> None:
    listing = read("audioset", tmp_path)
    assert listing.labels == "multi"
    assert listing.heads[0].classes[1] == "Male speech, man speaking"
    a, b, c, d = listing.segments
    assert (a.id, a.labels, *where(a)[:5]) == ("-5-vmt2iKT0", (0, 2), "train", None, "-5-vmt2iKT0", 30.0, 40.0)
    assert (b.start, b.end, c.labels) == (0.0, 8.0, (0, 1, 4))
    assert (d.split, d.labels, d.row) == ("test", (0,), 4)
    assert a.labels is b.labels and a.start is c.start and a.naming is d.naming, "millions of rows share what they say"


def test_audioset_in_both_published_forms_and_without_a_header(tmp_path: Path) -> None:
    text = LISTS["audioset"]["balanced_train_segments.csv"]
    bare = text.removeprefix(PUBLISHED).replace(", ", ",")
    forms = [text, bare, "YTID,start_seconds,end_seconds,positive_labels\n" + bare]
    a, b, c = (read("audioset", tmp_path / str(i), balanced_train_segments=t) for i, t in enumerate(forms))
    assert said(a) == said(b) == said(c)
    assert [s.row for s in a.segments[:3]] == [4, 5, 6]
    assert [s.row for s in c.segments[:3]] == [2, 3, 4]


def test_what_there_is_of_audioset_decides_what_training_is(tmp_path: Path) -> None:
    row = 'AAAAAAAAAA{}, 30.000, 40.000, "/m/09x0r"\n'
    lists = LISTS["audioset"] | {"unbalanced_train_segments.csv": row.format(1) + row.format(2)}
    both = CORPORA["audioset"].read(put(tmp_path / "both", lists))
    assert [s.split for s in both.segments] == ["train"] * 5 + ["test"]
    assert "training is balanced_train_segments and unbalanced_train_segments" in both.notes
    one = CORPORA["audioset"].read(put(tmp_path / "one", lists, balanced_train_segments=""))
    assert [s.id for s in one.segments] == ["AAAAAAAAAA1", "AAAAAAAAAA2", "--xphBsUEdQ"]
    assert "training is unbalanced_train_segments" in one.notes
    with pytest.raises(ConfigError, match=r"neither balanced_train_segments\.csv nor unbalanced"):
        CORPORA["audioset"].read(put(tmp_path / "none", LISTS["audioset"], balanced_train_segments=""))


def test_damaged_and_unlabelled_rows_of_audioset_are_counted(tmp_path: Path) -> None:
    text = LISTS["audioset"]["balanced_train_segments.csv"].removeprefix(PUBLISHED)
    text = '#NAME?, 30.000, 40.000, "/m/09x0r"\n' + text + '#NAME?,0,10,"/m/09x0r"\nAAAAAAAAAA1,0,10,""\n'
    listing = read("audioset", tmp_path, balanced_train_segments=text)
    assert [s.row for s in listing.segments] == [2, 3, 4, 4]
    assert set(listing.notes) >= {
        "balanced_train_segments.csv: 2 rows are left out, a spreadsheet has replaced their id by an error such as "
        "#NAME? (the first: row 1)",
        "balanced_train_segments.csv: 1 row is left out, they have no label (the first: row 6)",
    }
