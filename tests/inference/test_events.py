"""Spans and scores in, events out: against the plain way of doing it on columns, whole or in pieces."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax.config import AudioConfig
from datar_jax.inference.events import Event, EventDetector, EventSettings

AUDIO = AudioConfig(sample_rate=44_100, hop_ms=10.0)  # 441 samples
SECOND = 100  # columns


def heard(spans, scores, rules, labels=("a", "b"), seconds=1e9, sizes=(1,)):
    """The events, where spans are added in pieces of those sizes, and how many were there before the end."""
    timeline, events, at = EventDetector(labels, AUDIO, seconds, rules), [], 0
    for size in itertools.cycle(sizes):
        if at >= len(spans):
            break
        events += timeline.add(spans[at : at + size], scores[at : at + size])
        at += size
    early = len(events)
    return events + timeline.close(), early


def plainly(spans, scores, rules, labels=("a", "b")):
    """The same by arrays of columns: runs of each class, then gaps, then lengths."""
    events = []
    for s, label in enumerate(labels):
        level = np.zeros(max(last for _, last in spans) + 1)
        for t in range(level.size):
            over = [scores[m][s] for m, (first, last) in enumerate(spans) if first <= t < last]
            level[t] = np.exp(np.mean(np.log(np.maximum(over, 1e-7)))) if over else 0
        edges = np.flatnonzero(np.diff(np.concatenate([[0], level >= rules.offset, [0]])))
        runs = [(a, b, level[a:b].max()) for a, b in zip(edges[::2], edges[1::2])]
        merged = []
        for a, b, peak in (run for run in runs if run[2] >= rules.onset):
            if merged and (a - merged[-1][1]) * AUDIO.hop_length < rules.min_duration_off * AUDIO.sample_rate:
                a, _, before = merged.pop()
                peak = max(peak, before)
            merged.append((a, b, peak))
        for a, b, peak in merged:
            if (b - a) * AUDIO.hop_length >= rules.min_duration_on * AUDIO.sample_rate:
                events.append(Event(label, a * 441 / 44_100, b * 441 / 44_100, peak))
    return events


@st.composite
def timelines(draw):
    """Windows one after another that may overlap, leave gaps and have parts, with scores away from every threshold."""
    spans, scores, start = [], [], 0
    for _ in range(draw(st.integers(1, 12))):
        width, parts = draw(st.sampled_from([1, 3, 10])), draw(st.integers(1, 3))
        for part in range(parts):
            spans.append((start + part * width, start + (part + 1) * width))
            scores.append(draw(st.tuples(*[st.sampled_from([0.0, 0.11, 0.37, 0.63, 0.98])] * 2)))
        start += draw(st.integers(0, 15))
    order = sorted(range(len(spans)), key=lambda m: spans[m][0])
    rules = EventSettings(
        onset=draw(st.sampled_from([0.45, 0.7])),
        offset=draw(st.sampled_from([0.2, 0.45])),
        min_duration_off=draw(st.sampled_from([0.0, 0.04, 0.1])),
        min_duration_on=draw(st.sampled_from([0.0, 0.03, 0.15])),
    )
    return [spans[m] for m in order], [scores[m] for m in order], rules


@given(timelines(), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_events_are_those_of_the_plain_way_however_they_come(made, sizes):
    spans, scores, rules = made
    whole, _ = heard(spans, scores, rules, sizes=(len(spans),))
    pieces, _ = heard(spans, scores, rules, sizes=sizes)
    assert pieces == whole
    expected = plainly(spans, scores, rules)
    assert [e[:3] for e in sorted(whole)] == [e[:3] for e in sorted(expected)]
    np.testing.assert_allclose([e.score for e in sorted(whole)], [e.score for e in sorted(expected)], rtol=1e-12)


def windows_of(event, window, step, length):
    """Windows over a recording, and a model that hears an event in every window that has a part of it."""
    starts = range(0, length - window + 1, step)
    return [(s, s + window) for s in starts], [
        [0.97 if s < event[1] and s + window > event[0] else 0.02] for s in starts
    ]


def test_windows_that_hear_an_event_anywhere_put_it_where_it_is():
    spans, scores = windows_of((1_000, 1_500), window=400, step=100, length=3_000)
    (event,), _ = heard(spans, scores, EventSettings(), labels=("dog",))
    assert event == Event("dog", 10.0, 15.0, pytest.approx(0.97))


def test_one_window_that_misses_a_long_event_does_not_cut_it():
    spans, scores = windows_of((1_000, 2_500), window=400, step=100, length=4_000)
    scores[spans.index((1_700, 2_100))] = [0.2]
    (event,), _ = heard(spans, scores, EventSettings(), labels=("dog",))
    assert event[:3] == ("dog", 10.0, 25.0)


def test_an_event_begins_where_it_is_kept_and_has_the_score_of_its_peak():
    spans = [(t, t + 10) for t in range(0, 60, 10)]
    scores = [[0.1], [0.45], [0.9], [0.6], [0.41], [0.39]]
    (event,), _ = heard(spans, scores, EventSettings(onset=0.5, offset=0.4), labels=("a",))
    assert event == Event("a", 0.1, 0.5, pytest.approx(0.9))
    assert heard(spans, scores, EventSettings(onset=0.95, offset=0.4), labels=("a",))[0] == []


def test_a_score_of_just_the_threshold_is_enough():
    (event,), _ = heard([(0, 10)], [[0.5]], EventSettings(onset=0.5, offset=0.5), labels=("a",))
    assert event == Event("a", 0.0, 0.1, 0.5)


def test_a_gap_of_just_the_given_length_is_left_open_and_an_event_of_just_the_shortest_is_one():
    spans, scores = [(0, 30), (30, 60), (60, 90)], [[0.9], [0.1], [0.9]]
    assert len(heard(spans, scores, EventSettings(min_duration_off=0.3), labels=("a",))[0]) == 2
    assert len(heard(spans, scores, EventSettings(min_duration_off=0.301), labels=("a",))[0]) == 1
    assert len(heard(spans, scores, EventSettings(min_duration_off=0, min_duration_on=0.3), labels=("a",))[0]) == 2
    assert len(heard(spans, scores, EventSettings(min_duration_off=0, min_duration_on=0.301), labels=("a",))[0]) == 0


def test_no_time_is_rounded_twice_and_none_lies_beyond_the_end():
    day = 24 * 3_600 * SECOND
    spans, scores = [(day + i, day + i + 1) for i in range(0, 20, 10)], [[0.9], [0.9]]
    events, _ = heard(
        [(35, 36), *spans], [[0.9], *scores], EventSettings(min_duration_off=0), labels=("a",), seconds=86_400.105
    )
    assert 35 * (AUDIO.hop_length / AUDIO.sample_rate) != 0.35
    assert [(e.onset, e.offset) for e in events] == [(0.35, 0.36), (86_400.0, 86_400.01), (86_400.1, 86_400.105)]


def test_events_leave_as_soon_as_nothing_can_change_them_and_little_is_held():
    timeline, rng = EventDetector(("a",), AUDIO, 1e9, EventSettings(min_duration_off=0.3)), np.random.default_rng(0)
    assert timeline.add([[0, 40]], [[0.9]]) == []
    assert timeline.add([[40, 60]], [[0.1]]) == []
    assert timeline.add([[60, 65]], [[0.1]]) == []  # what begins at column 60 may still belong to it
    assert timeline.add([[70, 75]], [[0.1]]) == [Event("a", 0.0, 0.4, pytest.approx(0.9))]
    assert timeline.add([[90, 95]], [[0.9]]) == []
    for start in range(100, 10_000, 10):
        timeline.add([[start, start + 40]], rng.random((1, 1)))
        assert len(timeline._cells._spans) <= 5


@pytest.mark.parametrize(
    ("spans", "scores", "reason"),
    [
        ([[0, 10]], [[0.5]], "scores"),
        ([[0, 10, 3]], [[0.5, 0.5]], "spans"),
        ([[10, 10]], [[0.5, 0.5]], "ends where it begins"),
        ([[19, 30]], [[0.5, 0.5]], "begins at column 19"),
    ],
)
def test_spans_that_cannot_be_are_refused(spans, scores, reason):
    timeline = EventDetector(("a", "b"), AUDIO, 1.0)
    timeline.add([[0, 25]], [[0.5, 0.5]])
    timeline.add([[20, 45]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match=reason):
        timeline.add(spans, scores)


@pytest.mark.parametrize(
    "wrong",
    [
        {"onset": 0.0},
        {"onset": 1.1},
        {"offset": 0.6},
        {"offset": 0.0},
        {"min_duration_off": -1.0},
        {"min_duration_on": np.nan},
    ],
)
def test_rules_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        EventSettings(**wrong)
