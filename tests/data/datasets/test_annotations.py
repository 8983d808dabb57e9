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
from datar_jax.data.datasets.base import Annotations, FilePatterns, Segment
from datar_jax.data.datasets.kinetics_sounds import CLASSES
from datar_jax.data.prepare.match_files import match_files
from datar_jax.filesystem import storage_path

# A few rows of each list, in the form in which it is published.
CLASS_LABELS = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/m/02zsn,"Female speech, woman speaking"
3,/m/0ytgt,"Child speech, kid speaking"
4,/m/01h8n0,"Conversation"
"""
PUBLISHED = """# Segments csv created Sun Mar  5 10:56:58 2017
# num_ytids=3, num_segs=3, num_unique_labels=4, num_positive_labels=6
# YTID, start_seconds, end_seconds, positive_labels
"""
EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
SOUNDS_HEADER = (
    "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,description,class,"
    "class_id\n"
)
LISTS: dict[str, dict[str, str]] = {
    "audioset": {
        "class_labels_indices.csv": CLASS_LABELS,
        "balanced_train_segments.csv": PUBLISHED + '-5-vmt2iKT0, 30.000, 40.000, "/m/02zsn,/m/09x0r"\n'
        '0150dZu3Na8, 0.000, 8.000, "/m/02zsn,/m/09x0r"\n'
        '2hBVVym00rc, 30.000, 40.000, "/m/01h8n0,/m/05zppz,/m/09x0r"\n',
        "eval_segments.csv": PUBLISHED + '--xphBsUEdQ, 30.000, 40.000, "/m/09x0r"\n',
    },
    "epic_kitchens": {
        "EPIC_100_verb_classes.csv": "id,key,instances,category\r\n0,take,\"['take', 'get']\",retrieve\r\n"
        "1,put,\"['put']\",leave\r\n2,wash,\"['wash']\",clean\r\n3,open,\"['open']\",access\r\n",
        "EPIC_100_noun_classes.csv": "id,key,instances,category\r\n0,tap,\"['tap']\",appliances\r\n"
        "1,spoon,\"['spoon']\",cutlery\r\n2,plate,\"['plate']\",crockery\r\n3,cupboard,\"['door']\",storage\r\n",
        "EPIC_100_train.csv": EPIC_HEADER + "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,"
        "open,3,door,3,['door'],[3]\n",
        "EPIC_100_validation.csv": EPIC_HEADER + "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,"
        "take plate,take,0,plate,2,['plate'],[2]\n"
        "P01_11_1,P01,P01_11,00:00:01.700,01:02:01.56,01:02:02.45,93,147,put down plate,put-down,1,plate,2,"
        "\"['plate', 'tap']\",\"[2, 0]\"\n",
    },
    "epic_sounds": {
        "EPIC_Sounds_train.csv": SOUNDS_HEADER
        + "P01_11_1,P01,P01_11,00:00:03.065,00:00:14.447,73560,346728,paper rustle,rustle,1\n"
        "P01_11_2,P01,P01_11,00:00:16.706,00:00:32.406,400944,777744,paper rustle,rustle,1\n",
        "EPIC_Sounds_validation.csv": SOUNDS_HEADER
        + "P01_11_0,P01,P01_11,00:00:02.069,00:00:02.993,49656,71832,clang / clatter,ceramic / wood collision,0\n",
    },
    "esc50": {
        "meta/esc50.csv": "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n1-100038-A-14.wav,2,14,chirping_birds,False,100038,A\n"
        "1-100210-A-36.wav,5,36,vacuum_cleaner,False,100210,A\n",
    },
    "fsd50k": {
        "FSD50K.ground_truth/vocabulary.csv": "0,Bass_guitar,/m/018vs\n1,Electric_guitar,/m/02sgy\n2,Guitar,/m/0342h\n",
        "FSD50K.ground_truth/dev.csv": 'fname,labels,mids,split\n64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",'
        'train\n345111,"Guitar,Bass_guitar","/m/0342h,/m/018vs",val\n5312,Guitar,/m/0342h,train\n',
        "FSD50K.ground_truth/eval.csv": 'fname,labels,mids\n37199,"Electric_guitar,Guitar","/m/02sgy,/m/0342h"\n',
    },
    "kinetics_sounds": {
        "my_train.txt": "--4-0ihtnBU_000058_000068,10,4\r\n-1IlTIWPN_4_000027_000037,10,23\r\n",
        "my_test.txt": "-3Mwkq-7TV4_2,10,23\r\n-74csnCOiUs_0,10,14\r\n",
    },
    "speech_commands": {
        "speech_commands_v0.02/validation_list.txt": "bed/026290a7_nohash_0.wav\n",
        "speech_commands_v0.02/testing_list.txt": "cat/0c40e715_nohash_0.wav\nbed/gone_nohash_0.wav\n",
        "speech_commands_v0.02/bed/026290a7_nohash_0.wav": "",
        "speech_commands_v0.02/bed/0c40e715_nohash_0.wav": "",
        "speech_commands_v0.02/bed/README.md": "",
        "speech_commands_v0.02/cat/0c40e715_nohash_0.wav": "",
        "speech_commands_v0.02/cat/026290a7_nohash_0.wav": "",
        "speech_commands_v0.02/cat/._026290a7_nohash_0.wav": "",
        "speech_commands_v0.02/_background_noise_/pink_noise.wav": "",
    },
    "vggsound": {
        "vggsound.csv": "---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,waterfall burbling,train\n"
        '--Lj4Y_96f0,120,"bee, wasp, etc. buzzing",train\n',
        "stat.csv": 'waterfall burbling,1050,nature\r\n"bee, wasp, etc. buzzing",600,animals\r\n'
        "people marching,500,people\r\nzebra braying,400,animals\r\n",
    },
}


def put(folder: Path, files: dict[str, str], **changed: str) -> Path:
    """Writes lists; `changed` is by stem: other text, or "" for a list that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        text = changed.get(Path(name).stem, text) if name.endswith((".csv", ".txt")) else text
        if text or not name.endswith((".csv", ".txt")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(text.encode())
    return folder


def read(name: str, folder: Path, **changed: str) -> Annotations:
    return CORPORA[name].read(put(folder, LISTS[name], **changed))


def said(listing: Annotations) -> dict[str, tuple[object, ...]]:
    """What the lists say of each segment, by whatever list and line."""
    return {
        s.id: (tuple(name for h in listing.heads for name in h.classes)[s.labels[0]], s.labels, *where(s))
        for s in listing.segments
    }


def where(s: Segment) -> tuple[object, ...]:
    return s.split, s.fold, s.recording, s.start, s.end, s.naming


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
def test_a_row_that_is_there_twice_is_left_out_and_told(name: str, tmp_path: Path) -> None:
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


# VGGSound


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


# Kinetics-Sounds


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


# EPIC-KITCHENS and EPIC-SOUNDS


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


def test_lists_without_labels_are_told(tmp_path: Path) -> None:
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


# AudioSet


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


@pytest.mark.parametrize("text", ["1:60:00", "00:00:60", "00:01", "00:00:-1", "a:00:00", "00:00:01,5", "\u0660:00:00"])
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
