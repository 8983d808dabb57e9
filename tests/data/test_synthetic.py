"""Sounds are repeatable, in range and what their names say; the folder is written once."""

import numpy as np
import pytest
import soundfile

from datar_jax.data import synthetic as synthesis
from datar_jax.data import synthetic_sounds

RATE = synthetic_sounds.SAMPLE_RATE


def rng(seed=0):
    return np.random.default_rng(seed)


def spectrum(sound, rate=RATE):
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    return np.fft.rfftfreq(len(sound), 1 / rate), power


def centroid(sound):
    frequency, power = spectrum(sound)
    return (frequency * power).sum() / power.sum()


@pytest.mark.parametrize("kind", synthetic_sounds.KINDS)
def test_a_clip_is_finite_within_range_and_repeatable(kind):
    for seed in range(8):
        clip = synthetic_sounds.render(kind, rng(seed), 1.0 + 0.25 * seed, RATE)
        assert clip.dtype == np.float32 and clip.shape == (round((1.0 + 0.25 * seed) * RATE),)
        assert np.isfinite(clip).all()
        assert 0.099 < np.abs(clip).max() < 0.901
        np.testing.assert_array_equal(clip, synthetic_sounds.render(kind, rng(seed), 1.0 + 0.25 * seed, RATE))
        assert not np.array_equal(clip, synthetic_sounds.render(kind, rng(seed + 100), 1.0 + 0.25 * seed, RATE))


@pytest.mark.parametrize("kind", synthetic_sounds.KINDS)
@pytest.mark.parametrize(("seconds", "rate"), [(0.5, 8000), (0.5, 44100), (6.0, 8000)])
def test_other_lengths_and_rates(kind, seconds, rate):
    clip = synthetic_sounds.render(kind, rng(), seconds, rate)
    assert clip.shape == (round(seconds * rate),) and np.isfinite(clip).all() and clip.std() > 0


def test_what_cannot_be_rendered_is_refused():
    with pytest.raises(ValueError, match=r"kind='moo'.*alarm"):
        synthetic_sounds.render("moo", rng(), 1.0)
    with pytest.raises(ValueError, match=r"seconds=0\.1"):
        synthetic_sounds.render("bell", rng(), 0.1)
    with pytest.raises(ValueError, match="sample_rate=4000"):
        synthetic_sounds.render("bell", rng(), 1.0, 4000)


@pytest.mark.parametrize("pitch", [120.0, 997.0, 3100.0])
def test_a_tone_sounds_at_its_pitch_and_at_its_harmonics_alone(pitch):
    frequency, power = spectrum(synthetic_sounds.glide(np.full(RATE, pitch), RATE, (1.0, 0.0, 0.5)))
    assert frequency[power.argmax()] == pytest.approx(pitch, abs=1)
    wanted = [h * pitch for h in (1, 3) if h * pitch < RATE / 2]  # the rest would fold back
    near = np.min([np.abs(frequency - f) for f in wanted], axis=0) < 5
    assert power[near].sum() > 0.9999 * power.sum()


def test_a_glide_follows_its_path():
    sound = synthetic_sounds.glide(np.linspace(400, 2000, 2 * RATE), RATE)
    for start in (0, RATE // 2, RATE, 3 * RATE // 2):
        frequency, power = spectrum(sound[start : start + 1600])
        middle = 400 + 1600 * (start + 800) / (2 * RATE)
        assert frequency[power.argmax()] == pytest.approx(middle, abs=50)


def test_struck_partials_stand_where_they_are_put_and_decay():
    sound = synthetic_sounds.ring([500, 1190, 9000], [0.3, 0.3, 0.3], [1.0, 0.5, 9.0], RATE, RATE)
    frequency, power = spectrum(sound)
    assert frequency[power.argmax()] == pytest.approx(500, abs=2)
    assert power[np.abs(frequency - 1190) < 3].max() > 0.05 * power.max()
    assert power[frequency > 2000].sum() < 1e-3 * power.sum()  # 9 kHz does not exist at this rate
    tenth = RATE // 10
    levels = [np.sqrt(np.mean(sound[i * tenth : (i + 1) * tenth] ** 2)) for i in range(5)]
    np.testing.assert_allclose(np.divide(levels[1:], levels[:-1]), np.exp(-0.1 / 0.3), rtol=0.05)


def test_noise_keeps_to_its_band_and_tilt():
    sound = synthetic_sounds.noise(rng(), 4 * RATE, RATE, 500, 4000, -6.0)
    frequency, power = spectrum(sound)
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(1)
    assert power[(frequency > 350) & (frequency < 5600)].sum() > 0.98 * power.sum()
    octave = [power[(frequency >= f) & (frequency < 1.1 * f)].mean() for f in (700, 1400, 2800)]
    np.testing.assert_allclose(10 * np.log10(np.divide(octave[1:], octave[:-1])), -6.0, atol=1.0)


def test_an_alarm_beeps_in_its_range_and_a_siren_moves():
    for seed in range(6):
        frequency, power = spectrum(synthetic_sounds.render("alarm", rng(seed), 3.0))
        assert 0.69 * 500 < frequency[power.argmax()] < 3200
    moved = []
    for seed in range(6):
        tone = synthetic_sounds.KINDS["siren"](rng(seed), 2 * RATE, RATE)
        peaks = []
        for start in range(0, 2 * RATE - 1600, 1600):
            frequency, power = spectrum(tone[start : start + 1600])
            peaks.append(frequency[power.argmax()])
        moved.append(max(peaks) / min(peaks))
    assert min(moved) > 1.2


def test_kinds_differ_on_average_and_overlap_one_by_one():
    pitch = {
        kind: [centroid(synthetic_sounds.render(kind, rng(s), 2.0)) for s in range(12)]
        for kind in synthetic_sounds.KINDS
    }
    mean = {kind: np.mean(values) for kind, values in pitch.items()}
    assert max(mean["engine"], mean["wind"], mean["knocks"]) < min(mean["birds"], mean["rain"], mean["clicks"])
    for a, b in [("alarm", "siren"), ("alarm", "bell"), ("bark", "siren"), ("engine", "wind")]:
        assert min(pitch[a]) < max(pitch[b]) and min(pitch[b]) < max(pitch[a])


def test_the_data_set_is_written_once_and_as_asked(tmp_path):
    root = tmp_path / "deep" / "data"
    assert synthesis.write_dataset(root, 2, 0.5, seed=3) == 2 * len(synthetic_sounds.KINDS)
    files = sorted(root.glob("*/*.wav"))
    assert [str(f.relative_to(root)) for f in files] == [
        f"{k}/{k}_{i:03d}.wav" for k in synthetic_sounds.KINDS for i in (0, 1)
    ]
    info = soundfile.info(files[0])
    assert (info.samplerate, info.subtype, info.frames, info.channels) == (RATE, "PCM_16", RATE // 2, 1)
    before = {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file()}
    assert synthesis.write_dataset(root, 2, 0.5, seed=3) == 0
    assert before == {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file()}


def test_a_missing_file_comes_back_as_it_was(tmp_path):
    synthesis.write_dataset(tmp_path, 1, 0.5)
    lost = tmp_path / "bell" / "bell_000.wav"
    content = lost.read_bytes()
    lost.unlink()
    assert synthesis.write_dataset(tmp_path, 1, 0.5) == 1
    assert lost.read_bytes() == content


def test_a_write_that_was_cut_off_is_done_again(tmp_path, monkeypatch):
    real, calls = synthetic_sounds.render, []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(synthesis, "render", fails)
    with pytest.raises(KeyboardInterrupt):
        synthesis.write_dataset(tmp_path / "a", 1, 0.5)
    monkeypatch.undo()
    assert synthesis.write_dataset(tmp_path / "a", 1, 0.5) == len(synthetic_sounds.KINDS)
    synthesis.write_dataset(tmp_path / "b", 1, 0.5)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_setting_replaces_and_a_clip_depends_on_seed_kind_and_index_alone(tmp_path):
    synthesis.write_dataset(tmp_path / "a", 3, 0.5)
    three = contents(tmp_path / "a")
    synthesis.write_dataset(tmp_path / "a", 1, 0.5)
    one = contents(tmp_path / "a")
    assert len(one) == len(synthetic_sounds.KINDS) and one.items() <= three.items()
    synthesis.write_dataset(tmp_path / "a", 1, 0.5, seed=1)
    other = contents(tmp_path / "a")
    assert other.keys() == one.keys() and not any(other[f] == one[f] for f in one)
    assert len(set(three.values())) == len(three)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    theirs = tmp_path / "bell" / "bell_000.wav"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    with pytest.raises(ValueError, match="'bell'"):
        synthesis.write_dataset(tmp_path, 1, 0.5)
    assert theirs.read_bytes() == b"theirs" and len(list(tmp_path.rglob("*"))) == 2


def test_the_command_prints_one_line(tmp_path, capsys):
    command = ["--root", str(tmp_path / "d"), "--clips-per-class", "1", "--seconds", "0.5", "--seed", "2"]
    synthesis.main(command)
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'd'}: 10 clips of 0.5 s in 10 classes (10 written now)"
    ]
    with pytest.raises(SystemExit):
        synthesis.main(["--root", str(tmp_path / "d"), "--clips-per-class", "0"])
    assert "clips_per_class=0" in capsys.readouterr().err


def contents(root):
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*.wav"))}
