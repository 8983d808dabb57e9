"""Files in, answers out: the same scores as evaluation, shared batches, bad files, an hour without drift."""

import itertools
import os
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datar_jax.audio import recording
from datar_jax.audio.recording import NOT_FINITE
from datar_jax.config import AudioConfig, DataConfig
from datar_jax.data.loader import eval_batches
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.feature_cache import open_cache
from datar_jax.inference.events import EventSettings
from datar_jax.inference.predict import Prediction, predict_files
from datar_jax.inference.windows import FailedFile, iter_audio_files, map_windows
from datar_jax.labels import Head, class_names
from tests.audio.test_decode import sound
from tests.helpers import head

AUDIO = AudioConfig(n_mels=32, hop_ms=20.0)


@dataclass
class Energy:
    """A model that hears a click wherever a window has a loud sample or a loud column."""

    frames: int = 50
    input_kind: str = "mel"
    audio: AudioConfig = AUDIO
    labels: tuple[str, ...] = ("click", "silence")
    heads: tuple[Head, ...] = ()
    batches: list[dict] = field(default_factory=list)

    def score(self, batch):
        self.batches.append(batch)
        loud_B = {
            "mel": lambda: (batch["mel"].max((1, 2)) + 80) / 120,
            "samples": lambda: np.abs(batch["samples"] * batch["scale"][:, None]).max(1),
            "waveform": lambda: np.abs(batch["waveform"]).max(1),
        }[self.input_kind]()
        return np.stack([loud_B, 1 - loud_B], axis=1).astype(np.float32)


def folder_of(root, seconds=(0.3, 1.0, 2.35, 4.0)):
    for i, length in enumerate(seconds):
        (root / f"class_{i % 2}").mkdir(parents=True, exist_ok=True)
        soundfile.write(root / f"class_{i % 2}" / f"{i}.wav", 0.3 * sound(length * 22_050 / 16_000, i), 22_050)
    return root


@pytest.mark.parametrize("reads", ["mel", "samples"])
@pytest.mark.parametrize("overlap", [0.0, 0.75])
def test_scores_of_files_are_those_of_evaluation(tmp_path, reads, overlap):
    audio = AudioConfig(n_mels=32, hop_ms=20.0, frontend="host" if reads == "mel" else "device")
    model = Energy(input_kind=reads, audio=audio)
    dataset = read_dataset(DataConfig(root=str(folder_of(tmp_path / "sounds"))))
    total, views = np.zeros((len(dataset), 2)), np.zeros((len(dataset), 1))
    store = open_cache(dataset, audio, tmp_path / "cache")
    for batch in eval_batches(store, dataset, np.arange(len(dataset)), model.frames, 8):
        for clip, score in itertools.compress(zip(batch["clip"], model.score(batch).astype(float)), batch["mask"]):
            total[clip], views[clip] = total[clip] + score, views[clip] + 1
    assert views.max() == 4
    answers = {
        answer.path: answer for answer in predict_files(model, [tmp_path / "sounds"], overlap=overlap, batch_size=3)
    }
    assert list(answers) == [clip.path for clip in dataset.clips]
    for i, clip in enumerate(dataset.clips):
        np.testing.assert_array_equal(answers[clip.path].scores_S, (total / views)[i])
        assert answers[clip.path].seconds == pytest.approx(soundfile.info(clip.path).duration, abs=1 / 16_000)


def test_files_share_batches_of_one_size_and_an_answer_does_not_depend_on_it(tmp_path):
    root = folder_of(tmp_path / "sounds")
    model = Energy()
    answers = list(predict_files(model, [root], batch_size=4))
    windows = list(map_windows(model.score, model, [root], 0.75, 4))
    assert len(windows) == 1 + 1 + 9 + 13  # views 1, 1, 3, 4 and three between two of them
    shapes = {(name, values.shape, values.dtype.name) for batch in model.batches for name, values in batch.items()}
    assert shapes == {("mel", (4, 32, 50), "float32"), ("frames", (4,), "int32")}
    assert len(model.batches) == 2 * 6
    model = Energy()
    assert list(predict_files(model, [root], batch_size=64)) == answers
    assert len(model.batches) == 1
    np.testing.assert_array_equal(model.batches[0]["mel"][24:], model.batches[0]["mel"][:1].repeat(8, axis=0))


def test_a_function_may_give_a_dict_of_arrays(tmp_path):
    model = Energy()
    root = folder_of(tmp_path / "sounds")
    given = map_windows(
        lambda batch: {"peak": batch["mel"].max((1, 2)), "frames": batch["frames"]}, model, [root], 0, 4
    )
    rows = [(Path(w.recording.path).name, w.number, w.windows, w.start, w.is_view, w.output["frames"]) for w in given]
    assert rows[:5] == [
        ("0.wav", 0, 1, 0, True, 15),
        *[("2.wav", i, 3, start, True, 50) for i, start in enumerate([0, 34, 68])],
        ("1.wav", 0, 1, 0, True, 50),
    ]


def test_bad_files_are_answers_in_their_place_and_stop_nothing(tmp_path):
    root = folder_of(tmp_path / "sounds")
    (root / "class_0" / "1 broken.wav").write_text("This is a letter.")
    (root / "class_0" / "notes.txt").write_text("no sound")
    (root / "class_0" / ".hidden.wav").write_text("no sound")
    odd = root / "class_1" / os.fsdecode(b"na\xefve\n[red].WAV")
    odd.symlink_to(root / "class_0" / "0.wav")
    (root / "class_1" / "loop").symlink_to(root)
    (tmp_path / "empty").mkdir()
    given = [root, tmp_path / "gone.wav", tmp_path / "empty", root / "class_0" / "notes.txt"]
    answers = list(predict_files(Energy(), given, batch_size=2))
    assert [(Path(answer.path).name, getattr(answer, "reason", "")[:18]) for answer in answers] == [
        ("0.wav", ""),
        ("1 broken.wav", "cannot be decoded "),
        ("2.wav", ""),
        ("1.wav", ""),
        ("3.wav", ""),
        (odd.name, ""),
        ("gone.wav", "no such file"),
        ("empty", "holds no sound (0 "),
        ("notes.txt", "cannot be decoded "),
    ]
    assert answers[5].scores_S.tolist() == answers[0].scores_S.tolist()


def test_a_file_that_breaks_after_its_first_windows_is_one_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "KEPT", 0)
    root = folder_of(tmp_path / "sounds")

    def shorten(path, audio, measure=recording.measure):
        measured = measure(path, audio)
        if path.endswith("2.wav"):
            soundfile.write(path, sound(1.5), 22_050)
        return measured

    monkeypatch.setattr("datar_jax.inference.windows.measure", shorten)
    answers = list(predict_files(Energy(), [root], batch_size=2))
    assert [type(answer) for answer in answers] == [Prediction, FailedFile, Prediction, Prediction]
    assert answers[1].reason == "changed while it was read"


def test_scores_that_are_not_finite_are_no_answer(tmp_path):
    class Diverged(Energy):
        def score(self, batch):
            return np.full((len(batch["frames"]), 2), np.nan, np.float32)

    answers = predict_files(Diverged(), [folder_of(tmp_path / "sounds")])
    assert {getattr(answer, "reason", None) for answer in answers} == {NOT_FINITE}


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "sounds")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("class_0"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(iter_audio_files([root]))
    assert found == [
        *[str(root / "class_1" / name) for name in ("1.wav", "3.wav")],
        FailedFile(str(root / "class_0"), "cannot be read (Permission denied)"),
    ]


def test_files_are_opened_when_their_turn_comes(tmp_path):
    root = folder_of(tmp_path / "sounds")
    opened = []

    def endless():
        for path in itertools.cycle([root / "class_0" / "0.wav", root / "gone.wav"]):
            opened.append(path)
            yield path

    answers = predict_files(Energy(), endless(), batch_size=4)
    assert [type(next(answers)) for _ in range(6)] == [Prediction, FailedFile] * 3
    assert len(opened) < 30
    answers.close()


def test_many_bad_files_do_not_pile_up(tmp_path):
    root = folder_of(tmp_path / "sounds")
    for first, most in (("gone.wav", 4), ("class_0/0.wav", 2_500)):  # a window that waits for its batch holds them up
        opened = []
        bad = (opened.append(i) or root / f"{i}.wav" for i in range(5_000))
        answers = predict_files(Energy(), itertools.chain([root / first], bad), batch_size=4)
        next(answers)
        assert len(opened) <= most
        assert sum(isinstance(answer, FailedFile) for answer in answers) >= 4_999


def test_heads_stand_before_their_classes():
    assert class_names(("open", "shut", "door"), (head("verb", 2), head("noun", 1))) == (
        "verb: open",
        "verb: shut",
        "noun: door",
    )
    assert class_names(("a", "b"), ()) == class_names(("a", "b"), (head("all", 2),)) == ("a", "b")


@pytest.mark.parametrize("wrong", [{"overlap": 1.0}, {"batch_size": 0}])
def test_what_cannot_be_is_refused_before_a_file_is_opened(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        next(predict_files(Energy(), [], **wrong))


def clicks(path, minutes, rate):
    """Faint noise with a click of 20 ms every minute and in the last second; returns the times of the clicks."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-30, 30, 10 * rate).astype(np.int16)
    seconds = [60 * minute + rng.uniform(1, 50) for minute in range(minutes)] + [60 * minutes - 0.5]
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for ten in range(6 * minutes):
            part = noise.copy()
            for second in seconds:
                if 10 * ten <= second < 10 * ten + 10:
                    at = round((second - 10 * ten) * rate)
                    part[at : at + rate // 50] = 20_000
            file.write(part)
    return seconds


def own_samples(batch):
    """The largest sample of each window, without those that only its first and last columns need."""
    parts = [wave[start:][: 50 * 80] for wave, start in zip(batch["waveform"], batch["start"])]
    return np.abs(parts).max(1)[:, None].repeat(2, 1)


@pytest.mark.slow
def test_an_hour_does_not_drift_and_takes_the_memory_of_ten_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "KEPT", 1_000_000)
    audio = AudioConfig(sample_rate=4_000, n_mels=32, hop_ms=20.0)
    model = Energy(frames=50, input_kind="waveform", audio=audio)
    peaks = []
    for minutes in (10, 60):
        expected = clicks(tmp_path / "a.wav", minutes, 5_000)
        model.batches.clear()
        model.score = own_samples  # keeps no batch
        tracemalloc.start()
        (answer,) = predict_files(
            model, [tmp_path / "a.wav"], EventSettings(onset=0.3, offset=0.25, min_duration_off=0.1)
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        found = [event for event in answer.events if event.label == "click"]
        assert answer.seconds == 60 * minutes
        assert len(found) == len(expected)
        cell = 0.26  # seconds from one window to the next; a click may lie in two
        for event, second in zip(found, expected):
            assert 0 <= second - event.onset <= cell
            assert 0 < event.offset - second <= 2 * cell
    assert peaks[1] < 1.2 * peaks[0] < 40e6, peaks
