"""The picture of one sound: every panel that is promised, true axes, labels that can be read and never meet."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from datar_jax.audio.log_mel import bin_of_hertz, log_mel
from datar_jax.config import AudioConfig
from datar_jax.inference import attention_figure as look
from datar_jax.inference.attention_maps import AttentionMaps, BlockAttention
from datar_jax.plotting import hertz_axis, sheet
from tests.helpers import head

AUDIO = AudioConfig(n_mels=64, hop_ms=20.0, window_ms=40.0)
LABELS = [rf"$\no{{math$, a class that is heard far away_{i}" for i in range(7)]


def inside(frames: int, blocks: int, groups: int = 2, stage: int = 3) -> AttentionMaps:
    """Blocks that look somewhere, each at points of its own; what is drawn of them needs no model."""
    rng = np.random.default_rng(0)
    scale = 2 ** (stage + 2)
    size = (AUDIO.n_mels // scale, -(-frames // scale) + 2)  # two columns of padding
    counted = np.tile(np.arange(size[1]) < size[1] - 2, size[0])
    made = []
    for block in range(blocks):
        reference = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
        position = (reference + rng.uniform(-0.9, 0.9, (groups, *reference.shape))).astype(np.float32)
        weight = (rng.exponential(size=(groups, len(reference))) * counted).astype(np.float32)
        heat = rng.exponential(size=(groups, *size)).astype(np.float32)
        heat[..., -2:] = 0
        heat *= 0.75 / heat.sum((1, 2), keepdims=True)
        weight /= weight.sum(1, keepdims=True)
        outside = 1 - heat.sum((1, 2))
        made.append(
            BlockAttention(
                stage, block, size, size[1] - 2, size, scale, 0.0, reference, position, counted, weight, heat, outside
            )
        )
    return AttentionMaps(np.zeros(len(LABELS), np.float32), tuple(made), frames)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keeps the last figure that was drawn, besides saving it."""
    kept, save = [], look.save

    def keep(figure: Any, path: Any, dpi: float, write: Any) -> None:
        kept[:] = [figure]
        save(figure, path, dpi / 4, write)

    monkeypatch.setattr(look, "save", keep)
    return lambda: kept[0]


def draw(path: Path, frames: int, blocks: int, groups: int = 2, events: Any = (), **more: Any) -> AttentionMaps:
    mel = np.random.default_rng(1).normal(-40, 15, (AUDIO.n_mels, frames + 30))
    seen = inside(frames, blocks, groups)
    score = np.arange(1, len(LABELS) + 1) / 10
    look.save_attention_figure(path, mel, AUDIO, seen, score, LABELS, events, **more)
    return seen


def texts_of(figure: Any) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]


EVENTS = [(LABELS[i % 9 % 7] + str(i % 9), 0.1 * i, 0.1 * i + 0.3, 0.9 - i / 40) for i in range(12)]


@pytest.mark.parametrize(
    "frames, blocks, groups, events",
    [(50, 1, 1, []), (50, 2, 4, EVENTS), (1500, 3, 2, EVENTS[:1]), (250, 10, 8, EVENTS), (250, 0, 1, [])],
    ids=["second", "two", "half_minute", "ten", "none"],
)
def test_every_panel_is_there_and_no_label_meets_another(
    tmp_path: Path, drawn: Any, frames: int, blocks: int, groups: int, events: Any
) -> None:
    path = tmp_path / "new" / "look.png"
    draw(path, frames, blocks, groups, events, title="some folder/a recording.wav")
    picture = matplotlib.image.imread(path)[..., :3]
    assert all((edge > 0.99).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1])), (
        "nothing is cut"
    )
    figure = drawn()
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    shown = {0: [], 1: [0], 2: [0, 1], 3: [0, 1, 2], 10: [0, 2, 4, 5, 7, 9]}[blocks]
    assert titles == [f"stage 3, block {i}" for i in shown]
    landed = [axes for axes in figure.axes if axes.get_title(loc="right") == "25% fell off the map"]
    assert len(landed) == len(shown)
    words = [text.get_text() for text in texts_of(figure)]
    assert {"hertz", "decibels", "seconds", "some folder/a recording.wav"} <= set(words)
    assert any("6 of 10 deformable blocks" in word for word in words) == (blocks == 10)
    assert ("and 1 more" in words) == (len(events) == 12), "nine labels, eight rows"
    FigureCanvasAgg(figure).draw()
    assert min(text.get_fontsize() for text in texts_of(figure)) >= 7
    hidden = {id(label) for axes in figure.axes for label in hidden_labels(axes)}
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure) if id(text) not in hidden]
    assert not [(a[0], b[0]) for a, b in combinations(boxes, 2) if a[1].overlaps(b[1])]
    spectrogram = figure.axes[0]
    assert spectrogram.get_xlim() == pytest.approx((-0.01, (frames - 0.5) * 0.02)), "whatever the events"


def hidden_labels(axes: Any) -> list[Text]:
    """Labels of ticks beyond the limits of an axis, which matplotlib keeps and does not draw."""
    out = []
    for one, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
        slack = 1e-9 * (high - low)
        for tick in one.get_major_ticks():
            beyond = not low - slack <= tick.get_loc() <= high + slack
            out += [label for label in (tick.label1, tick.label2) if beyond or not axes.axison]
        out += [one.get_offset_text()]
    return out


def test_axes_are_seconds_and_mel_bins_of_the_sound_alone(tmp_path: Path, drawn: Any) -> None:
    """Frame t is centred on t hops, pixel p of a map of stage 3 on bin and frame 32 p; padding is not drawn."""
    seen = draw(tmp_path / "look.svg", 64, 1)
    assert (tmp_path / "look.svg").read_text().startswith("<?xml")
    images = [image for axes in drawn().axes for image in axes.images]
    spectrogram, faint, heat = images
    for image in (spectrogram, faint):
        assert image.get_extent() == pytest.approx((-0.01, 63.5 * 0.02, -0.5, 63.5)) and image.get_array().shape == (
            64,
            64,
        )
    assert heat.get_extent() == pytest.approx((-16 * 0.02, 48 * 0.02, -16, 48))
    np.testing.assert_allclose(heat.get_array(), 4 * seen.blocks[0].heat_GxFxT.mean(0)[:, :2])  # of 2 x 2 pixels
    (points, _) = (axes for axes in drawn().axes if axes.get_xlabel() == "seconds" and axes is not spectrogram.axes)
    for g, marks in enumerate(points.collections):
        wanted = seen.blocks[0].position_GxNx2[g][seen.blocks[0].counted_N] * 32
        np.testing.assert_allclose(marks.get_offsets(), wanted[:, ::-1] * (0.02, 1), rtol=1e-6)
        weight = seen.blocks[0].weight_GxN[g][seen.blocks[0].counted_N]
        np.testing.assert_allclose(marks.get_sizes() / marks.get_sizes().sum(), weight, rtol=1e-5)
    low, high = points.get_ylim()
    assert low < wanted[:, 0].min() and high > 63.5


def test_scores_are_the_best_of_each_question(tmp_path: Path, drawn: Any) -> None:
    draw(tmp_path / "look.pdf", 50, 0)
    assert (tmp_path / "look.pdf").read_bytes().startswith(b"%PDF")
    words = [text.get_text() for text in drawn().axes[1].texts]
    assert words[1::2] == ["70.0%", "60.0%", "50.0%", "40.0%", "30.0%"] and words[0].endswith("_6")
    draw(tmp_path / "look.pdf", 50, 0, heads=(head("verb", 3), head("noun", 4)))
    words = [text.get_text() for text in drawn().axes[-1].texts]
    assert words[1::2] == ["30.0%", "20.0%", "70.0%", "60.0%"]
    assert [word[:5] for word in words[::2]] == ["verb:", "verb:", "noun:", "noun:"]


@pytest.mark.parametrize(
    "audio", [AUDIO, AudioConfig(n_mels=40, fmin=50, fmax=7000), AudioConfig(n_mels=128, window_ms=64)]
)
@pytest.mark.parametrize("hertz", [1000, 3000])
def test_a_tone_is_brightest_where_its_frequency_is_named(audio: AudioConfig, hertz: int) -> None:
    """At a thousand hertz, where Slaney's scale turns from lines to logarithms, and above."""
    tone = np.sin(2 * np.pi * hertz * np.arange(audio.sample_rate) / audio.sample_rate)
    brightest = log_mel(tone, audio)[:, 20:-20].mean(1).argmax()
    assert abs(brightest - bin_of_hertz(hertz, audio)) <= 0.5


def test_frequencies_are_named_as_far_as_there_is_room() -> None:
    for inches, names in ((4.0, "1k 4k 250 2k 500 125"), (0.4, "1k 4k")):
        axes = sheet(1, inches).add_subplot()
        hertz_axis(axes, AudioConfig(n_mels=64), inches, 7)
        assert [label.get_text() for label in axes.get_yticklabels()] == names.split()
        rows = bin_of_hertz(np.array([1000, 4000]), AudioConfig(n_mels=64))
        np.testing.assert_allclose(axes.get_yticks()[:2], rows)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    seen, mel = inside(50, 1), np.zeros((64, 50))
    for arguments, said in (
        ((mel, AUDIO, seen, np.ones(3), LABELS), "3 scores and 7 labels"),
        ((mel[:, :49], AUDIO, seen, np.ones(7), LABELS), r"spectrogram \(64, 49\): give 64 mel bins and 50 or more"),
    ):
        with pytest.raises(ValueError, match=said):
            look.save_attention_figure(tmp_path / "look.png", *arguments)
    with pytest.raises(ValueError, match=r"look\.gif: a picture ends in \.png, \.pdf, \.svg"):
        look.save_attention_figure(tmp_path / "look.gif", mel, AUDIO, seen, np.ones(7), LABELS)
