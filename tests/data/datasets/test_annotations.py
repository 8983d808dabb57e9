"""Published data sets: what their lists say, in every form they are met in; names of files; what is left out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax.config import ConfigError
from datar_jax.config import loader as settings
from datar_jax.data.csv_table import Table
from datar_jax.data.datasets import CORPORA
from datar_jax.data.datasets.annotations import YOUTUBE
from datar_jax.data.datasets.base import FilePatterns, Segment
from tests.data.datasets.published_lists import (
    LISTS,
    put,
    read,
)

# Every data set


def test_there_is_a_case_for_every_data_set() -> None:
    assert set(LISTS) == set(CORPORA)


@pytest.mark.parametrize("name", LISTS)
def test_ids_are_unique_and_labels_are_classes(name: str, tmp_path: Path) -> None:
    listing = read(name, tmp_path)
    assert len({s.id for s in listing.segments}) == len(listing.segments) > 0
    classes = sum(len(head.classes) for head in listing.heads)
    for s in listing.segments:
        assert list(s.labels) == sorted(set(s.labels)) and s.labels[0] >= 0 and s.labels[-1] < classes
        assert (s.split is None) != (s.fold is None)
        assert s.cut or s.whole
        assert listing.labels == "multi" or len(s.labels) == len(listing.heads)
    for head in listing.heads:
        assert len(set(head.classes)) == len(head.classes)
    assert all(path.is_file() for path in listing.lists)


@pytest.mark.parametrize("name", LISTS)
def test_a_segment_knows_its_line(name: str, tmp_path: Path) -> None:
    listing = read(name, tmp_path)
    paths = {path.name: path for path in listing.lists}
    for s in listing.segments:
        if s.row:
            line = paths[s.source].read_text().splitlines()[s.row - 1]
            assert (s.recording or s.id) in line


@pytest.mark.parametrize("name", LISTS)
def test_line_ends_and_marks_change_nothing(name: str, tmp_path: Path) -> None:
    plain = read(name, tmp_path / "plain")
    texts = {Path(f).stem: t for f, t in LISTS[name].items() if f.endswith((".csv", ".txt"))}
    marked = {stem: "\ufeff" + "\r\n".join([*t.splitlines(), "", " "]) for stem, t in texts.items()}
    assert read(name, tmp_path / "marked", **marked).segments == plain.segments


@pytest.mark.parametrize("name", LISTS)
def test_a_row_that_is_there_twice_is_left_out_and_reported(name: str, tmp_path: Path) -> None:
    plain = read(name, tmp_path / "plain")
    path = next(p for p in plain.lists if p.name == plain.segments[0].source)
    last = path.read_text().splitlines()[-1]
    again = read(name, tmp_path / "plain", **{path.stem: path.read_text() + last + "\n"})
    assert again.segments == plain.segments
    rows = len(path.read_text().splitlines())
    assert set(again.notes) - set(plain.notes) == {
        f"{path.name}: 1 row is left out, they repeat an earlier row (the first: row {rows})"
    }


@pytest.mark.parametrize("name", LISTS)
def test_a_missing_list_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        CORPORA[name].read(tmp_path / "nowhere")
    full = read(name, tmp_path / "full").lists
    for path in full:
        if path.name != "stat.csv":
            with pytest.raises(ConfigError, match=re.escape(path.name)):
                read(name, tmp_path / path.stem, **{path.stem: ""})


@pytest.mark.parametrize("name", LISTS)
def test_a_config_of_its_name_fits_the_data_set(name: str, tmp_path: Path) -> None:
    override = {"data.kind": "prepared"} if name == "esc50" else {}
    config = settings.load_config(Path(__file__).parent.parent.parent.parent / "configs" / f"{name}.py", override)
    assert config.data.kind == "prepared" and not config.data.subset
    assert config.data.labels == read(name, tmp_path).labels
    assert config.audio.sample_rate == CORPORA[name].sample_rate


def test_what_is_fetched_is_known_by_a_hash_or_by_its_commit() -> None:
    fetched = [d for corpus in CORPORA.values() for d in corpus.downloads]
    assert len(fetched) == 2
    for download in fetched:
        assert download.url.startswith("https://") and download.size > 0
        assert re.fullmatch("[0-9a-f]{64}", download.sha256) or re.search("/[0-9a-f]{40}[.]zip$", download.url)


# Names of files


def test_names_that_people_give_to_clips() -> None:
    segment = Segment("x", (0,), "train", None, YOUTUBE, "-a_b-c_1_2x", 30.0, 40.0)
    assert segment.cut == (
        "-a_b-c_1_2x_000030_000040",
        "-a_b-c_1_2x_000030",
        "-a_b-c_1_2x_30_40",
        "-a_b-c_1_2x_30",
        "-a_b-c_1_2x_30000_40000",
    )
    assert segment.whole == ("-a_b-c_1_2x",)
    start = dataclasses.replace(segment, start=0.0, end=10.0)
    assert len(set(start.cut)) == len(start.cut)
    assert Segment("a{0}", (0,), None, 1, FilePatterns(("{id}", "{id}", "b/{id}"))).cut == ("a{0}", "b/a{0}")


def test_each_data_set_says_how_its_files_are_named(tmp_path: Path) -> None:
    first = {name: read(name, tmp_path / name).segments[0] for name in LISTS}
    assert first["audioset"].whole == ("Y-5-vmt2iKT0", "-5-vmt2iKT0")
    assert "-5-vmt2iKT0_30000_40000" in first["audioset"].cut
    assert (first["epic_kitchens"].cut, first["epic_kitchens"].whole) == (("P01_01_0",), ("P01_01",))
    assert (first["epic_sounds"].cut, first["epic_sounds"].whole) == ((), ("P01_11",))
    assert (first["esc50"].cut, first["esc50"].whole) == (("1-100032-A-0", "1-100032-A"), ())
    assert (first["fsd50k"].cut, first["fsd50k"].whole) == (("64760",), ())
    assert (first["speech_commands"].cut, first["speech_commands"].whole) == (("bed/026290a7_nohash_0",), ())
    assert first["vggsound"].cut[:2] == ("---g-f_I2yQ_000001_000011", "---g-f_I2yQ_000001")


# ESC-50, FSD50K, Speech Commands


def test_esc50(tmp_path: Path) -> None:
    for folder in (
        put(tmp_path, LISTS["esc50"]),
        tmp_path / "meta",
        put(tmp_path / "x/ESC-50-1", LISTS["esc50"]).parent,
    ):
        listing = CORPORA["esc50"].read(folder)
        assert listing.heads[0].classes == ("dog", "chirping_birds", "vacuum_cleaner")
        got = [(s.id, s.labels, s.split, s.fold, s.start, s.end) for s in listing.segments]
        assert got == [
            ("1-100032-A-0", (0,), None, 1, 0.0, 0.0),
            ("1-100038-A-14", (1,), None, 2, 0.0, 0.0),
            ("1-100210-A-36", (2,), None, 5, 0.0, 0.0),
        ]


def test_fsd50k(tmp_path: Path) -> None:
    listing = read("fsd50k", tmp_path)
    assert listing.labels == "multi"
    assert listing.heads[0].classes == ("Bass_guitar", "Electric_guitar", "Guitar")
    assert [(s.id, s.labels, s.split) for s in listing.segments] == [
        ("64760", (1, 2), "train"),
        ("345111", (0, 2), "validation"),
        ("5312", (2,), "train"),
        ("37199", (1, 2), "test"),
    ]


def test_speech_commands_is_the_folder_of_its_files(tmp_path: Path) -> None:
    listing = read("speech_commands", tmp_path)
    assert listing.heads[0].classes == ("bed", "cat")
    assert {s.id: (s.labels[0], s.split) for s in listing.segments} == {
        "bed/026290a7_nohash_0": (0, "validation"),
        "bed/0c40e715_nohash_0": (0, "train"),
        "bed/gone_nohash_0": (0, "test"),  # listed, so that its absence is seen
        "cat/0c40e715_nohash_0": (1, "test"),
        "cat/026290a7_nohash_0": (1, "train"),
    }
    assert listing.notes == ("2 words, not 35", "_background_noise_: 1 sound is left out, it is no word")


# Errors


@pytest.mark.parametrize(
    "name, stem, old, new, parts",
    [
        ("vggsound", "vggsound", "people marching", "people flying", ["row 1", "class='people flying'", "stat.csv"]),
        ("vggsound", "vggsound", ",train", ",dev", ["row 2", "split='dev'", "train or test"]),
        ("vggsound", "vggsound", ",30,", ",-3,", ["row 2", "second='-3'", "whole number"]),
        ("vggsound", "vggsound", ",30,", ",", ["row 2", "3 cells", "4 columns (id, second, class, split)"]),
        ("vggsound", "vggsound", "--0PQM4-hqg", "", ["row 2", "id=''", "empty"]),
        ("vggsound", "vggsound", "---g-f_I2yQ,1", "--0PQM4-hqg,30", ["row 2", "another split", "row 1 of vggsound"]),
        ("kinetics_sounds", "my_train", ",4\r", ",31\r", ["row 1", "class='31'", "31 classes", "classes.txt"]),
        ("kinetics_sounds", "my_test", "-3Mwkq-7TV4_2", "-3Mwkq-7TV4", ["row 1", "clip='-3Mwkq-7TV4'"]),
        ("kinetics_sounds", "my_test", "_2,10", "_2,ten", ["row 1", "seconds='ten'"]),
        ("epic_kitchens", "EPIC_100_train", "00:00:03.37", "3.37", ["row 2", "stop_timestamp='3.37'", "HH:MM:SS"]),
        ("epic_kitchens", "EPIC_100_train", "open,3", "open,4", ["row 2", "verb_class='4'"]),
        ("epic_kitchens", "EPIC_100_validation", "plate,2", "plate,9", ["row 2", "noun_class='9'"]),
        ("epic_kitchens", "EPIC_100_verb_classes", "1,put", "2,put", ["row 3", "id='2'", "1 comes next"]),
        ("epic_kitchens", "EPIC_100_validation", "P01_11_1", "P01_11_0", ["row 3", "P01_11_0", "row 2"]),
        ("epic_sounds", "EPIC_Sounds_train", "rustle,1", "rustle,0", ["EPIC_Sounds_validation", "row 2", "'rustle'"]),
        ("epic_sounds", "EPIC_Sounds_train", "rustle,1", "rustle,99999", ["row 2", "class='rustle'", "99999"]),
        ("epic_sounds", "EPIC_Sounds_train", ",73560,", ",3.065,", ["row 2", "start_sample='3.065'"]),
        ("audioset", "eval_segments", "/m/09x0r", "/m/none", ["row 4", "positive_labels", "'/m/none'"]),
        ("audioset", "eval_segments", "30.000", "half", ["row 4", "start_seconds='half'"]),
        ("audioset", "eval_segments", "30.000", "-1", ["row 4", "start_seconds='-1'"]),
        ("audioset", "eval_segments", "--xphBsUEdQ", "-5-vmt2iKT0", ["row 4", "-5-vmt2iKT0", "row 4 of balanced"]),
        ("audioset", "class_labels_indices", "2,/m/02zsn", "3,/m/02zsn", ["row 4", "index='3'", "2 comes next"]),
        ("esc50", "esc50", "14,chirping", "0,chirping", ["row 3", "category='chirping_birds'", "'dog'"]),
        ("esc50", "esc50", "wav,2", "wav,0", ["row 3", "fold='0'"]),
        ("fsd50k", "dev", "5312,Guitar", "5312,Banjo", ["row 4", "labels='Banjo'", "vocabulary.csv"]),
        ("fsd50k", "dev", "Bass_guitar\"", "Banjo\"", ["row 3", "labels", "'Banjo'"]),
        ("fsd50k", "dev", ",val", ",dev", ["row 3", "split='dev'"]),
        ("fsd50k", "vocabulary", "2,Guitar", "2,Bass_guitar", ["row 3", "index='2'"]),
        ("fsd50k", "eval", "37199", "64760", ["row 2", "64760", "row 2 of dev.csv"]),
        ("speech_commands", "testing_list", "cat/", "cow/", ["row 1", "cow/0c40e715_nohash_0.wav"]),
        ("speech_commands", "testing_list", "cat/0c40e715", "bed/026290a7", ["row 1", "another split"]),
    ],
)  # fmt: skip
def test_an_error_names_file_row_and_column(
    name: str, stem: str, old: str, new: str, parts: list[str], tmp_path: Path
) -> None:
    text = next(text for file, text in LISTS[name].items() if Path(file).stem == stem)
    assert old in text
    with pytest.raises(ConfigError) as error:
        read(name, tmp_path, **{stem: text.replace(old, new, 1)})
    message = str(error.value)
    assert "\n" not in message
    for part in [str(tmp_path), *parts]:
        assert part in message, f"{part!r} is missing in: {message}"


# Tables


@given(hours=st.integers(0, 99), minutes=st.integers(0, 59), milliseconds=st.integers(0, 59_999))
def test_a_clock_says_seconds(
    tmp_path_factory: pytest.TempPathFactory, hours: int, minutes: int, milliseconds: int
) -> None:
    path = tmp_path_factory.mktemp("clock") / "t.csv"
    path.write_text(f"at\n{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}\n")
    table = Table(path, ("at",))
    whole = (hours * 60 + minutes) * 60_000 + milliseconds
    assert [table.clock("at") for _ in table.rows()] == [whole / 1000]


@pytest.mark.parametrize(
    "text",
    ["1:60:00", "00:00:60", "00:01", "00:00:-1", "a:00:00", "00:00:01,5", "\u0660:00:00", "9" * 5_000 + ":00:00"],
)
def test_what_is_no_clock_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f'at\n"{text}"\n')
    table = Table(tmp_path / "t.csv", ("at",))
    with pytest.raises(ConfigError, match="row 2, column at="):
        [table.clock("at") for _ in table.rows()]


def test_comments_and_titles_are_passed_over_at_the_top_only(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("# one\n\na,b\n1,2\n# one,3\na,b\n")
    table = Table(path, (), None, ("a", "b"))
    assert [(table.row, *row.values()) for row in table.rows()] == [(4, "1", "2"), (5, "# one", "3"), (6, "a", "b")]
    path.write_text("# one,two\n1,2\n")
    assert Table(path, ("# one",), None).columns == {"# one", "two"}, "a table with a header of its own has no comments"
