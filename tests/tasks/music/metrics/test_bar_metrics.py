"""Statistics in bars against values worked out by hand, and against loops that walk bar by bar in exact fractions."""

import itertools
import lzma
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.music.bars import bar_lines, count_covered, note_cells, place_notes
from tasks.music.metrics import bar_metrics, repetition
from tasks.music.metrics.piece_metrics import piece_statistics
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score
from tests.budget import examples
from tests.builders import DRUMS, make_score

BAR = 2000  # ticks of a bar of 4/4 in these tests, 125 a position
C4, E4, G4, A4, B4, C5 = 60, 64, 67, 69, 71, 72


def in_bars(*bars: list[tuple[int, int]], length: int = BAR, duration: int = 125) -> list[tuple[int, ...]]:
    """Return notes from (position, pitch) pairs, bar by bar."""
    return [
        (index * length + position * 125, duration, pitch, 80)
        for index, bar in enumerate(bars)
        for position, pitch in bar
    ]


class SlowPiece:
    """The bars of a piece as sets, found without any of the code under test."""

    def __init__(self, score: Score) -> None:
        self.score, quarter, notes = score, score.ticks_per_quarter, score.notes
        meters = score.time_signatures
        stated = list(zip(meters.tick.tolist(), meters.numerator.tolist(), meters.denominator.tolist(), strict=True))
        end = int((notes.onset + notes.duration).max(initial=0)) + quarter
        self.lines, self.lengths = [Fraction(0)], list[Fraction]()
        while self.lines[-1] <= end:
            in_force = [(4, 4), *((n, d) for tick, n, d in stated if tick <= self.lines[-1])][-1]
            self.lengths.append(Fraction(4 * quarter * in_force[0], in_force[1]))
            self.lines.append(self.lines[-1] + self.lengths[-1])
        self.unit = Fraction(quarter, 4)
        self.notes = list[tuple[int, int, int, int]]()  # bar, position, symbol, duration
        for onset, duration, pitch, is_drum in zip(
            notes.onset.tolist(), notes.duration.tolist(), notes.pitch.tolist(), notes.is_drum.tolist(), strict=True
        ):
            early = onset + self.unit / 2
            bar = self.bar_at(early)
            lasting = max(math.floor(duration / self.unit + Fraction(1, 2)), 1)
            place = math.floor((early - self.lines[bar]) / self.unit)
            self.notes.append((bar, place, pitch + 128 * is_drum, lasting))
        bars = [bar for bar, *_ in self.notes]
        self.range = range(min(bars), max(bars) + 1) if bars else range(0)

    def bar_at(self, tick: Fraction | int) -> int:
        return max(index for index, line in enumerate(self.lines) if line <= tick)

    def n_positions(self, bar: int) -> int:
        return math.ceil(self.lengths[bar] / self.unit)

    def onsets(self, bar: int) -> set[int]:
        return {place for at, place, *_ in self.notes if at == bar}

    def kinds(self, bar: int) -> set[tuple[int, int, int]]:
        return {(place, symbol, lasting) for at, place, symbol, lasting in self.notes if at == bar}

    def groove_likeness(self, one: int, other: int) -> float:
        longer = max(self.n_positions(one), self.n_positions(other))
        return 1 - len(self.onsets(one) ^ self.onsets(other)) / longer

    def groove_consistency(self) -> float:
        return mean([self.groove_likeness(bar, bar + 1) for bar in self.range[:-1]])

    def grooving_similarity(self) -> float:
        return mean([self.groove_likeness(*pair) for pair in itertools.combinations(self.range, 2)])

    def likenesses(self, pairs: list[tuple[int, int]]) -> list[float]:
        sets = [(self.kinds(one), self.kinds(other)) for one, other in pairs]
        return [len(one & other) / len(one | other) for one, other in sets if one | other]

    def bar_similarity(self, lag: int) -> float:
        return mean(self.likenesses([(bar, bar + lag) for bar in self.range if bar + lag in self.range]))

    def self_similarity(self) -> float:
        return mean(self.likenesses(list(itertools.combinations(self.range, 2))))

    def phrase(self, bar: int, n_bars: int) -> set[tuple[int, ...]]:
        return {(k, *kind) for k in range(n_bars) for kind in self.kinds(bar + k)}

    def phrase_repetition(self, n_bars: int) -> float:
        phrases = {bar: self.phrase(bar, n_bars) for bar in self.range if bar + n_bars - 1 in self.range}
        best = [
            max(
                (len(one & other) / len(one | other) for j, other in phrases.items() if abs(i - j) >= n_bars), default=0
            )
            for i, one in phrases.items()
            if one
        ]
        return mean(best)

    def pitch_class_entropy(self, n_bars: int) -> float:
        found = []
        for first in range(self.range[0], max(self.range[-1] - n_bars + 1, self.range[0]) + 1) if self.range else []:
            classes = [s % 12 for bar, _, s, _ in self.notes if first <= bar < first + n_bars and s < 128]
            shares = [classes.count(pc) / len(classes) for pc in set(classes)]
            if classes:
                found.append(-sum(share * math.log2(share) for share in shares))
        return mean(found)

    def chords(self) -> list[int]:
        chords = []
        for bar in self.range:
            weights = [0] * 12
            for at, place, symbol, lasting in self.notes:
                if at == bar and symbol < 128:
                    weights[symbol % 12] += min(lasting, self.n_positions(bar) - place)
            triads = [
                sum(weights[(root + step) % 12] for step in (0, third, 7)) for third in (4, 3) for root in range(12)
            ]
            if any(weights):
                chords.append(triads.index(max(triads)))
        return chords

    def chord_irregularity(self) -> float:
        chords = self.chords()
        trigrams = [tuple(chords[i : i + 3]) for i in range(len(chords) - 2)]
        return len(set(trigrams)) / len(trigrams) if trigrams else 0.0

    def empty_rate(self, lines: list[Fraction]) -> float:
        notes = self.score.notes
        spans = list(zip(notes.onset.tolist(), (notes.onset + notes.duration).tolist(), strict=True))
        if not spans:
            return 1.0
        last = max(end for _, end in spans)
        cells = [(low, high) for low, high in itertools.pairwise(lines) if low < last]
        return mean([not any(on < high and low < end for on, end in spans) for low, high in cells])

    def drum_pattern_consistency(self) -> float:
        notes, quarter = self.score.notes, self.score.ticks_per_quarter
        onsets = [Fraction(tick, quarter) for tick in notes.onset[notes.is_drum].tolist()]
        shares = [
            mean([abs(at - Fraction(round(at * parts), parts)) <= Fraction(1, 24) for at in onsets]) for parts in (4, 3)
        ]
        return max(shares)


def mean(values: list[float] | list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


@st.composite
def pieces(draw: st.DrawFn) -> Score:
    """Short pieces of few pitches in meters that change, on grids that sixteenths and bars do not always fit."""
    quarter = draw(st.sampled_from([1, 7, 24, 480]))
    tick = st.integers(0, 24 * quarter)
    note = st.tuples(tick, st.integers(1, 9 * quarter), st.sampled_from([60, 61, 64]), st.just(80), st.integers(0, 1))
    onsets = st.lists(st.integers(0, 20 * quarter), unique=True, max_size=4).map(sorted)
    meters = [(at, draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 4, 8, 32]))) for at in draw(onsets)]
    notes = draw(st.lists(note, max_size=24))
    return make_score(notes, programs=(0, DRUMS), time_signatures=meters, ticks_per_quarter=quarter)


@examples(150)
@given(pieces())
def test_statistics_are_what_slow_loops_find(score: Score) -> None:
    slow, statistics = SlowPiece(score), piece_statistics(score)
    quarters = [Fraction(index * score.ticks_per_quarter) for index in range(60)]
    expected = {
        "groove_consistency": slow.groove_consistency(),
        "grooving_similarity": slow.grooving_similarity(),
        **{f"bar_similarity_{lag}": slow.bar_similarity(lag) for lag in (1, 2, 4, 8)},
        "self_similarity": slow.self_similarity(),
        "bar_repetition": slow.phrase_repetition(1),
        **{f"phrase_repetition_{n}": slow.phrase_repetition(n) for n in (2, 4, 8)},
        "pitch_class_entropy_1_bar": slow.pitch_class_entropy(1),
        "pitch_class_entropy_4_bars": slow.pitch_class_entropy(4),
        "chord_irregularity": slow.chord_irregularity(),
        "empty_bar_rate": slow.empty_rate(slow.lines),
        "empty_beat_rate": slow.empty_rate(quarters),
        "drum_pattern_consistency": slow.drum_pattern_consistency(),
    }
    assert {name: statistics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    last = int((score.notes.onset + score.notes.duration).max(initial=0))
    assert statistics["n_bars"] == (slow.bar_at(last - Fraction(1, 99)) + 1 if last else 0)


def test_bar_lines_through_changes_of_meter() -> None:
    meters = make_score([], time_signatures=[(0, 3, 4), (3000, 2, 4), (4600, 6, 8), (4700, 4, 4)]).time_signatures
    lines = bar_lines(meters, 500)  # 3/4 from 0, 2/4 from 3000; what comes inside the bar from 4000 waits for 5000
    bar, rest = lines.place(np.array([0, 1499, 1500, 3000, 4999, 5000, 6999, 7000]) * lines.units_per_tick)
    assert bar.tolist() == [0, 0, 1, 2, 3, 4, 4, 5]
    assert (rest // lines.units_per_tick).tolist() == [0, 1499, 0, 0, 999, 0, 1999, 0]
    assert lines.n_positions(np.array([0, 2, 4])).tolist() == [12, 8, 16]
    assert (lines.n_off_line, lines.n_between_ticks) == (2, 0)


def test_bars_between_ticks_are_counted_and_exact() -> None:
    meters = make_score([], time_signatures=[(0, 3, 32)]).time_signatures
    lines = bar_lines(meters, 5)  # 1.875 ticks a bar
    assert lines.n_between_ticks == 1
    assert lines.place(np.array([15 * 7 * lines.units_per_tick]))[0].tolist() == [56]


def test_onsets_just_before_a_bar_line_belong_behind_it() -> None:
    notes = place_notes(make_score([(BAR - 30, 100, C4, 80), (BAR + 30, 180, C4, 80), (BAR - 63, 190, C4, 80)]))
    assert notes.bar.tolist() == [0, 1, 1]
    assert notes.position.tolist() == [15, 0, 0]
    assert notes.duration.tolist() == [2, 1, 1]


def test_groove_by_hand() -> None:
    score = make_score(in_bars([(0, C4), (8, C4)], [(0, E4), (4, E4), (8, E4)], [(0, C4), (8, G4)]))
    statistics = piece_statistics(score)
    assert statistics["groove_consistency"] == pytest.approx(1 - 1 / 16)  # one position of 16 differs, twice
    assert statistics["grooving_similarity"] == pytest.approx(1 - 2 / 3 / 16)  # and in two of three pairs


def test_groove_of_bars_of_different_lengths() -> None:
    notes = [(0, 100, C4, 80), (1500, 100, C4, 80), (3000, 100, C4, 80), (3000 + 1500, 100, C4, 80)]
    score = make_score(notes, time_signatures=[(0, 3, 4), (3000, 4, 4)])  # 3/4, 3/4, 4/4 with an onset at its end
    statistics = piece_statistics(score)
    assert statistics["groove_consistency"] == pytest.approx(1 - (0 + 1 / 16) / 2)
    assert statistics["grooving_similarity"] == pytest.approx(1 - (0 + 1 / 16 + 1 / 16) / 3)


def test_bar_similarity_by_hand() -> None:
    score = make_score(in_bars([(0, C4), (4, E4)], [(0, C4), (4, G4)], [(0, C4), (4, E4)]))
    statistics = piece_statistics(score)
    assert statistics["bar_similarity_1"] == pytest.approx(1 / 3)
    assert statistics["bar_similarity_2"] == pytest.approx(1)
    assert statistics["bar_similarity_4"] == 0
    assert statistics["self_similarity"] == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert statistics["bar_repetition"] == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert statistics["phrase_repetition_2"] == 0  # both phrases overlap


def test_silent_bars_are_unlike_all_others_but_silence_is_not_compared() -> None:
    bar = [(0, C4), (4, E4)]
    statistics = piece_statistics(make_score(in_bars(bar, [], bar, bar, [], [], bar)))
    assert statistics["bar_similarity_1"] == pytest.approx(1 / 5)  # one of six pairs is silent
    assert statistics["bar_similarity_2"] == pytest.approx(1 / 5)
    assert statistics["self_similarity"] == pytest.approx(6 / (21 - 3))
    assert statistics["bar_repetition"] == pytest.approx(1)
    assert statistics["phrase_repetition_2"] == pytest.approx((1 + 1 + 0.5 + 1 + 1) / 5)


def test_notes_of_another_length_or_drums_of_the_same_number_are_other_notes() -> None:
    rows = [(0, 125, C4, 80, 0), (BAR, 250, C4, 80, 0), (2 * BAR, 125, C4, 80, 1)]
    assert piece_statistics(make_score(rows, programs=(0, DRUMS)))["self_similarity"] == 0


def test_a_phrase_that_returns_note_by_note() -> None:
    phrase = [[(0, C4), (8, E4)], [(0, G4)], [(4, A4)], [(0, C5), (12, B4)]]
    twice = piece_statistics(make_score(in_bars(*phrase, *phrase)))
    assert twice["phrase_repetition_4"] == pytest.approx((1 + 1) / 5)  # the three phrases between overlap all others
    four_times = piece_statistics(make_score(in_bars(*phrase * 4)))
    assert four_times["phrase_repetition_4"] == pytest.approx(1)
    assert four_times["bar_similarity_4"] == pytest.approx(1)
    assert four_times["bar_similarity_1"] == 0
    assert four_times["compression_ratio"] > twice["compression_ratio"] > 1


def test_chords_by_hand() -> None:
    pitches = ((60, 64, 67), (60, 65, 69), (59, 62, 67), (57, 60, 64))
    c, f, g, a_minor = ([(0, pitch) for pitch in chord] for chord in pitches)
    notes = place_notes(make_score(in_bars(c, f, g, c, a_minor, f, g, c, f, g)))
    assert bar_metrics.bar_chords(notes).tolist() == [0, 5, 7, 0, 12 + 9, 5, 7, 0, 5, 7]
    # C F G, F G C (twice), G C a, C a F, a F G, G C F, and C F G once more
    assert bar_metrics.chord_irregularity(notes) == pytest.approx(6 / 8)


def test_the_longest_notes_name_the_chord_inside_their_bar() -> None:
    held = [(0, 1000, 60, 80), (0, 1000, 64, 80), (0, 1000, 67, 80), (1000, 125, 61, 80), (1500, 9000, 63, 80)]
    assert bar_metrics.bar_chords(place_notes(make_score(held))).tolist() == [0]


def test_pitch_class_entropy_by_bars() -> None:
    score = make_score(in_bars([(0, C4)], [(0, E4), (4, C5)], [], [(0, G4)], [(0, G4)]))
    statistics = piece_statistics(score)
    assert statistics["pitch_class_entropy_1_bar"] == pytest.approx((0 + 1 + 0 + 0) / 4)
    c2e1g1 = 0.5 + 2 * 0.25 * 2
    e1c1g2 = 0.5 + 2 * 0.25 * 2
    assert statistics["pitch_class_entropy_4_bars"] == pytest.approx((c2e1g1 + e1c1g2) / 2)


def test_emptiness_to_the_last_sound() -> None:
    statistics = piece_statistics(make_score([(BAR, BAR, C4, 80), (4 * BAR, 500, C4, 80)]))
    assert statistics["n_bars"] == 5
    assert statistics["empty_bar_rate"] == pytest.approx(3 / 5)  # a note that ends on a bar line fills no bar behind it
    assert statistics["empty_beat_rate"] == pytest.approx(1 - 5 / 17)
    assert statistics["notes_per_bar"] == pytest.approx(2 / 5)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=20))
def test_covered_numbers(spans: list[tuple[int, int]]) -> None:
    first = np.array([low for low, _ in spans], np.int64)
    last = first + np.array([length for _, length in spans], np.int64)
    assert count_covered(first, last) == len({n for low, length in spans for n in range(low, low + length + 1)})


def test_drums_on_quarters_and_thirds_of_a_beat() -> None:
    straight = [(125 * index, 50, 36, 80) for index in range(8)]
    swung = [(index * 500 // 3, 50, 36, 80) for index in range(6)]
    played = [(125 * index + 20, 50, 36, 80) for index in range(8)]  # 20 ticks are less than 500 / 24
    late = [(125 * index + 21, 50, 36, 80) for index in range(8)]
    shares = [
        piece_statistics(make_score(rows, programs=(DRUMS,)))["drum_pattern_consistency"]
        for rows in (straight, swung, played, late)
    ]
    assert shares[:3] == [1, 1, 1]
    assert shares[3] < 0.5
    assert piece_statistics(make_score(straight))["drum_pattern_consistency"] == 0


def test_compression_by_its_bytes() -> None:
    score = make_score([(0, 500, C4, 80), (500, 125, 40, 80, 1), (500, 99_000, E4, 80)], programs=(0, DRUMS))
    raw = repetition.symbol_string(place_notes(score))
    assert list(raw) == [0, 60, 4, 4, 64, 255, 0, 168, 1]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**20}]
    packed = lzma.compress(raw, lzma.FORMAT_RAW, filters=filters)
    assert lzma.decompress(packed, lzma.FORMAT_RAW, filters=filters) == raw
    assert piece_statistics(score)["compression_ratio"] == pytest.approx(9 / len(packed))


def test_repetition_looks_at_a_limited_number_of_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = in_bars(*[[(0, C4)]] * 4, *[[(0, E4)]] * 4)
    cells = note_cells(place_notes(make_score(notes)))
    common, size = repetition.common_notes(cells)
    assert common.shape == (8, 8)
    monkeypatch.setattr(repetition, "_PAIRS_AT_ONCE", 3)  # in many blocks, the same
    assert np.array_equal(repetition.common_notes(cells)[0], common)
    monkeypatch.setattr(repetition, "MAX_BARS", 4)
    common, size = repetition.common_notes(cells)
    assert common.tolist() == [[1] * 4] * 4
    assert repetition.self_similarity(common, size) == 1


SHARES = (
    "empty_bar_rate", "empty_beat_rate", "groove_consistency", "grooving_similarity", "bar_similarity_1",
    "bar_similarity_8", "self_similarity", "bar_repetition", "phrase_repetition_2", "phrase_repetition_8",
    "chord_irregularity", "drum_pattern_consistency",
)  # fmt: skip


@pytest.mark.parametrize(
    "score",
    [
        make_score([]),
        make_score([(0, 1, C4, 80)]),
        make_score([(0, 100, 36, 80), (500, 100, 38, 80)], programs=(DRUMS,)),
        make_score(in_bars([(0, C4), (3, E4), (15, G4)])),
        make_score([(0, 5000, C4, 80), (100, 5000, C4, 80), (100, 5000, C4, 80)]),
        make_score(
            [(2**31 - 9, 5, C4, 80), (0, 2**31 - 9, C4, 80)], ticks_per_quarter=1, time_signatures=[(0, 1, 128)]
        ),
        make_score([(tick, 9, C4, 80) for tick in range(0, 2**24, 2**12)], time_signatures=[(0, 255, 1)]),
    ],
    ids=["empty", "one note", "drums", "one bar", "overlapping", "2**36 bars", "long bars"],
)
def test_every_value_is_finite_and_in_its_range(score: Score) -> None:
    statistics = piece_statistics(score)
    assert all(isinstance(value, float) and math.isfinite(value) for value in statistics.values())
    assert all(-1e-9 <= statistics[name] <= 1 + 1e-9 for name in SHARES)
    assert 0 <= statistics["pitch_class_entropy_4_bars"] <= math.log2(12) + 1e-9


def test_statistics_outlive_a_midi_file() -> None:
    rows = [(0, 400, C4, 80), (250, 90, 36, 99, 1), (700, 1300, E4, 80), (2000, 400, G4, 80), (5250, 90, 36, 99, 1)]
    score = make_score(rows, programs=(5, DRUMS), time_signatures=[(0, 3, 4), (3000, 7, 8)])
    assert piece_statistics(read_midi(write_midi(score))) == pytest.approx(piece_statistics(score))


def test_ten_thousand_notes() -> None:
    dice = np.random.default_rng(0)
    values = dice.integers(30, 90, (10_000, 2)).tolist()
    rows = [(index * 125, length, pitch, 80) for index, (length, pitch) in enumerate(values)]
    statistics = piece_statistics(make_score(rows))
    assert statistics["n_bars"] == 625
    assert statistics["groove_consistency"] == 1
    assert statistics["notes_per_bar"] == 16
