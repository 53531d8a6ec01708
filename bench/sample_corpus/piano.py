"""Piano pieces: songs, waltzes, nocturnes, marches and others in ABA forms, with pedal, rubato and phrased dynamics."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.sample_corpus.accompaniment import Figure, Voiced, place_chords, play_figure
from bench.sample_corpus.dice import Dice
from bench.sample_corpus.expression import Phrase, loudness_at, shape_tempo
from bench.sample_corpus.harmony import Key, Span, chord
from bench.sample_corpus.melody import Meter, Tone, embellish
from bench.sample_corpus.midi_file import Note, Part, Piece
from bench.sample_corpus.theme import PHRASE_BARS, Section, compose_section, draw_material


@dataclass(frozen=True, slots=True)
class Style:
    name: str
    meter: Meter
    quarters_per_minute: tuple[float, float]
    characters: tuple[str, str]  # of the first and the second bar of the theme
    figures: tuple[Figure, ...]  # the first for the theme, any for its variations
    freedom: float  # rubato, 0-1
    chord_beats: tuple[float, ...] = ()  # lengths of the chords of one bar; empty: one chord a bar
    pedal_share: float = 1.0  # of the pieces that use the pedal
    center: int = 73  # of the melody


WALTZ = Figure(1, ("b", "012", "012"), 0.8)
BROKEN = Figure(0.5, ("b", "0", "1", "2", "1", "0"), holds_bass=True)
ALBERTI = Figure(0.5, ("0", "2", "1", "2"))
WIDE = Figure(0.5, ("b", "0", "1", "2", "u", "2", "1", "0"), holds_bass=True)
STYLES = (
    Style("waltz", (3, 4), (132, 168), ("flowing", "calm"), (WALTZ, WALTZ), 0.7),
    Style("nocturne", (4, 4), (62, 76), ("flowing", "calm"), (WIDE, Figure(0.5, ("b", "1", "2", "u"), holds_bass=True)),
          1.0, (2, 2)),
    Style("song", (4, 4), (84, 104), ("flowing", "flowing"),
          (Figure(0.5, ("b", "1", "0", "1", "2", "1", "0", "1"), holds_bass=True), Figure(1, ("b", "012", "B", "012"))),
          0.6),
    Style("sonatina", (4, 4), (116, 138), ("lively", "flowing"), (ALBERTI, Figure(1, ("b", "012", "012", "012"), 0.6)),
          0.25, (), 0.4),
    Style("barcarolle", (6, 8), (72, 88), ("flowing", "calm"),
          (Figure(0.5, ("b", "1", "2", "0", "2", "1"), holds_bass=True), BROKEN), 0.8),
    Style("minuet", (3, 4), (108, 126), ("lively", "flowing"),
          (Figure(1, ("b0", "1", "2")), Figure(0.5, ("b", "1", "0", "1", "2", "1"))), 0.3, (), 0.5),
    Style("march", (2, 4), (96, 112), ("lively", "flowing"),
          (Figure(0.5, ("b", "012", "B", "012"), 0.6), Figure(1, ("b", "012"), 0.6)), 0.2, (), 0.3),
    Style("prelude", (4, 4), (63, 76), ("calm", "calm"),
          (Figure(0.25, ("b", "0", "1", "2", "1", "2", "0", "1"), holds_bass=True),), 0.7, (), 1.0, 76),
    Style("intermezzo", (5, 4), (124, 150), ("flowing", "calm"),
          (Figure(1, ("b", "012", "012", "B", "012"), 0.8),
           Figure(0.5, ("b", "0", "1", "2", "1", "0", "b", "1", "2", "1"))),
          0.5),
    Style("album-leaf", (3, 4), (84, 104), ("flowing", "flowing"), (BROKEN, Figure(1, ("b", "12", "u"))), 0.8),
    Style("hymn", (4, 4), (76, 92), ("flowing", "flowing"), (Figure(2, ("b012",)), Figure(1, ("b012", "012"))), 0.5,
          (2, 2)),
    Style("gigue", (6, 8), (138, 162), ("lively", "flowing"),
          (Figure(0.5, ("b", "", "012", "B", "", "012"), 0.8), Figure(1.5, ("b012", "012"), 0.7)), 0.25, (), 0.4),
    Style("etude", (2, 4), (66, 84), ("flowing", "calm"),
          (Figure(0.25, ("b", "1", "0", "1", "2", "1", "0", "1")),
           Figure(0.25, ("b", "0", "1", "2", "u", "2", "1", "0"))), 0.6),
    Style("ballad", (4, 4), (72, 92), ("syncopated", "calm"),
          (Figure(0.5, ("b", "012", "2", "01", "B", "12", "0", "12"), holds_bass=True), WIDE), 0.7),
)  # fmt: skip
# Forms and the bars of their sections.
FORMS = (("ABA", 8), ("AABA", 8), ("AABA", 4), ("ABACA", 4), ("AABB", 8), ("ABA", 4), ("AABACA", 4))


def compose_piano(dice: Dice, key: Key, style: Style) -> Piece:
    """Return a piano piece of 24-66 seconds in a sectional form, with markers for its sections and cadences."""
    bar = style.meter[0] * 4 / style.meter[1]
    pace = dice.between(*style.quarters_per_minute)
    form, n_bars = _choose_form(dice, style, bar, pace)
    material = draw_material(
        dice, key, style.meter, characters=style.characters, center=style.center, bar_chords=style.chord_beats
    )
    by_letter = {
        letter: compose_section(dice, material, letter, n_bars, letter == form[-1]) for letter in sorted(set(form))
    }
    n_intro = dice.pick((0, 0, 1, 2)) if style.name != "hymn" else 0
    tonic = chord(key, "i" if key.is_minor else "I")
    intro = [Span(index * bar, bar, tonic) for index in range(n_intro)]
    sections, now = [], n_intro * bar
    for letter in form:
        sections.append(by_letter[letter].shift(now))
        now += sections[-1].length_beats
    phrases = _phrase_plan(dice, form, sections, bar)
    right = _play_melody(dice, style, form, sections, phrases)
    left = _play_left_hand(dice, style, form=form, intro=intro, sections=sections, phrases=phrases, bar=bar)
    pedals = _press_pedal(intro, sections) if dice.chance(style.pedal_share) else []
    markers = [(section.spans[0].onset_beats, letter) for letter, section in zip(form, sections, strict=True)]
    markers += [
        (beat, f"{cadence} cadence in {where.name}")
        for section in sections
        for beat, cadence, where in section.cadences
    ]
    tempos = shape_tempo(dice, phrases, pace, style.freedom, bar / 2 if style.meter == (6, 8) else 1.0)
    signatures = [(0.0, key.sharps, key.is_minor)]
    title = f"{style.name.capitalize()} in {key.name}"
    return Piece(title, _split_hands(dice, right, left, pedals), tempos, [(0.0, *style.meter)], markers, signatures)


def _choose_form(dice: Dice, style: Style, bar: float, pace: float) -> tuple[str, int]:
    """Return a form and the bars of its sections so that length (24-58 s) and notes (132-520) stay in bounds."""
    figure = style.figures[0]
    per_bar = 3.5 + sum(len(figure.steps[i % len(figure.steps)]) for i in range(round(bar / figure.unit_beats)))
    fits = []
    for form, n_bars in FORMS:
        total = len(form) * n_bars
        if 24 <= total * bar * 60 / pace <= 58 and 132 <= total * per_bar <= 520:
            fits.append((form, n_bars))
    assert fits, f"no form fits a {style.name} at {pace:.1f}"
    return dice.pick(fits)


def _phrase_plan(dice: Dice, form: str, sections: Sequence[Section], bar: float) -> list[Phrase]:
    loudness = {letter: dice.between(58, 76) for letter in sorted(set(form))}
    phrases, n_heard = [], dict.fromkeys(form, 0)
    for letter, section in zip(form, sections, strict=True):
        start = section.spans[0].onset_beats
        level = loudness[letter] + dice.pick((-7, 0, 5)) * (n_heard[letter] > 0)
        n_heard[letter] += 1
        n_phrases = round(section.length_beats / (PHRASE_BARS * bar))
        for index in range(n_phrases):
            begin = start + index * PHRASE_BARS * bar
            is_end = index == n_phrases - 1
            phrases.append(Phrase(begin, begin + PHRASE_BARS * bar, level + 3 * index, is_end))
    first = phrases[0]
    phrases[0] = Phrase(0.0, first.end_beat, first.loudness, first.is_section_end)  # the introduction belongs to it
    return phrases


def _play_melody(
    dice: Dice, style: Style, form: str, sections: Sequence[Section], phrases: Sequence[Phrase]
) -> list[Note]:
    """Return the right hand: repeats are embellished, the last section may be doubled in sixths or octaves."""
    notes: list[Note] = []
    shortest = 1.0 if style.meter != (2, 4) else 0.5
    doubling = dice.pick(("none", "none", "below", "octave"))
    loose = 0.02 * style.freedom
    for index, (letter, section) in enumerate(zip(form, sections, strict=True)):
        tones = section.tones
        if letter in form[:index]:
            tones = embellish(dice, tones, dice.pick((0.25, 0.5)), shortest)
        is_doubled = doubling != "none" and index == len(form) - 1
        for tone in tones:
            loudness = round(
                loudness_at(phrases, tone.onset_beats) + 9 + 0.25 * (tone.pitch - style.center) + dice.between(-3, 3)
            )
            onset = max(0.0, tone.onset_beats + dice.between(-loose, loose))
            notes.append(Note(onset, tone.duration_beats * 0.97, tone.pitch, loudness))
            if is_doubled and (doubling == "octave" or tone.duration_beats >= 1):
                second = _double(tone, doubling)
                notes.append(Note(onset, tone.duration_beats * 0.97, second, loudness - 8))
    return notes


def _double(tone: Tone, how: str) -> int:
    """Return a pitch to go with a melody note: its octave above, or the nearest chord tone a third or more below."""
    if how == "octave":
        return tone.pitch + 12
    return next(pitch for pitch in range(tone.pitch - 3, tone.pitch - 12, -1) if pitch % 12 in tone.chord.pitch_classes)


def _play_left_hand(
    dice: Dice,
    style: Style,
    *,
    form: str,
    intro: Sequence[Span],
    sections: Sequence[Section],
    phrases: Sequence[Phrase],
    bar: float,
) -> list[Note]:
    """Return the accompaniment: one figure a letter, and a rolled chord to end with."""
    figures = {letter: style.figures[0] if letter == "A" else dice.pick(style.figures) for letter in sorted(set(form))}
    spans = [*intro, *(span for section in sections for span in section.spans)]
    voiced = place_chords(spans, 42, 56)
    loose, notes, start = 0.012 * style.freedom, [], 0
    for letter, n_spans in [("A", len(intro)), *((form[i], len(section.spans)) for i, section in enumerate(sections))]:
        chords = voiced[start : start + n_spans]
        start += n_spans
        for onset, duration, pitch, is_bass in play_figure(
            chords if start < len(voiced) else chords[:-1], figures[letter], bar
        ):
            loudness = loudness_at(phrases, onset, 8.0) - (8 if is_bass else 15) + 4 * (onset % bar == 0)
            onset_played = max(0.0, onset + dice.between(-loose, loose))
            notes.append(Note(onset_played, duration * 0.98, pitch, round(loudness + dice.between(-3, 3))))
    return notes + _roll_last_chord(dice, voiced[-1], style, phrases[-1].loudness)


def _roll_last_chord(dice: Dice, last: Voiced, style: Style, loudness: float) -> list[Note]:
    gap = 0.5 if style.freedom >= 0.6 and dice.chance(0.6) else 0.06 * style.freedom
    pitches = [last.bass - 12 if last.bass >= 45 else last.bass, last.fifth, *last.tones]
    end = last.span.onset_beats + last.span.duration_beats
    notes = []
    for index, pitch in enumerate(dict.fromkeys(sorted(pitches))):
        onset = last.span.onset_beats + index * gap
        notes.append(Note(onset, end - onset, pitch, round(loudness - 14 - index)))
    return notes


def _press_pedal(intro: Sequence[Span], sections: Sequence[Section]) -> list[tuple[float, float]]:
    """Return the pedal: down just after each new harmony, up when the next one is struck."""
    spans = [*intro, *(span for section in sections for span in section.spans)]
    pedals: list[tuple[float, float]] = []
    for index, span in enumerate(spans):
        end = span.onset_beats + span.duration_beats
        if pedals and spans[index - 1].chord.pitch_classes == span.chord.pitch_classes and index % 2:
            pedals[-1] = (pedals[-1][0], end + 0.02)
        else:
            pedals.append((span.onset_beats + 0.12, end + 0.02))
    return pedals


def _split_hands(dice: Dice, right: list[Note], left: list[Note], pedals: list[tuple[float, float]]) -> list[Part]:
    """Return one part for the piano, or one for each hand; each hand then presses the pedal on its own channel."""
    program = dice.pick((None, 0, 0, 1, 4), (4, 3, 1, 0.5, 0.5))
    if dice.chance(0.5):
        return [Part("Piano", 0, program, right + left, pedals)]
    return [Part("Right hand", 0, program, right, pedals), Part("Left hand", 1, program, left, list(pedals))]
