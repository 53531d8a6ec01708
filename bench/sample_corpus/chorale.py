"""Four-voice chorales: phrases with cadences and modulations, strict voice leading, passing notes and suspensions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.sample_corpus.dice import Dice
from bench.sample_corpus.expression import Phrase, loudness_at
from bench.sample_corpus.harmony import Chord, Key, build_phrase, chord, lay_out
from bench.sample_corpus.midi_file import Note, Part, Piece
from bench.sample_corpus.ornaments import Texture, ornament
from bench.sample_corpus.voicing import VOICE_NAMES, voice_chords

# For each meter the chord lengths of a phrase in quarter notes; the first number is the pickup (0: none).
PHRASE_RHYTHMS: dict[tuple[int, int], list[tuple[float, list[float]]]] = {
    (4, 4): [(1, [1, 1, 1, 1, 1, 1, 1, 1]), (0, [1, 1, 1, 1, 1, 1, 2]), (0, [1.5, 0.5, 1, 1, 1, 1, 2])],
    (3, 4): [(0, [2, 1, 2, 1, 1, 1, 1, 3]), (1, [1, 2, 1, 2, 1, 1, 1, 1, 2]), (0, [1, 1, 1, 2, 1, 1, 1, 1, 3])],
    (6, 8): [(0, [1, 0.5, 1.5, 1, 0.5, 1.5, 1, 0.5, 1, 0.5, 3]), (0, [1.5, 1.5, 1, 0.5, 1.5, 1.5, 1.5, 3])],
    (2, 4): [(0, [1, 1, 1, 1, 1, 1, 2]), (1, [1, 1, 1, 1, 1, 1, 1, 1])],
    (5, 4): [(0, [1, 1, 1, 1, 1, 1, 1, 1, 2])],
}
# One letter a phrase: the same letter is the same music.
FORMS = ("ABABCD", "ABCDE", "AABCD", "ABCAD", "ABACD")
ENSEMBLES = (
    ("piano", (0, 0, 0, 0)),
    ("organ", (19, 19, 19, 19)),
    ("choir", (52, 52, 52, 52)),
    ("strings", (43, 42, 41, 40)),
    ("brass", (58, 57, 60, 56)),
    ("woodwinds", (70, 71, 69, 68)),
)
# From the home tonic into another key: semitones up to its tonic, whether the mode changes, the first chord there.
MAJOR_TRIPS = (("V", 7, False, "IV"), ("vi", 9, True, "III"), ("IV", 5, False, "V"))
MINOR_TRIPS = (("III", 3, True, "vi"), ("v", 7, False, "iv"), ("III", 3, True, "IV"))


@dataclass(frozen=True, slots=True)
class Line:
    """One phrase of a chorale before it has a place in time: chords, their lengths and their four voices."""

    key: Key
    cadence: str
    chords: list[Chord]
    durations: list[float]  # quarter notes
    voicings: np.ndarray  # pitches from bass to soprano


def compose_chorale(dice: Dice, key: Key, meter: tuple[int, int]) -> Piece:
    """Return a chorale of five or six phrases with the markers of its cadences."""
    rhythms = PHRASE_RHYTHMS[meter]
    pickup, durations = dice.pick(rhythms, [2, 1.5, 1][: len(rhythms)])
    form = dice.pick(FORMS)
    by_letter = _write_lines(dice, key, form, pickup, durations)
    lines = [by_letter[letter] for letter in form]
    texture = ornament(dice, _join(lines))
    return _perform(dice, key, meter, pickup=pickup, lines=lines, texture=texture)


def _write_lines(dice: Dice, key: Key, form: str, pickup: float, durations: list[float]) -> dict[str, Line]:
    """Return the different phrases of a form, voiced in one go so that each leads into the next."""
    letters = sorted(set(form))
    plans, targets, cadences = [], [], []
    for letter in letters:
        is_last = letter == form[-1]
        plan = _plan_line(dice, key, letter, is_last=is_last, pickup=pickup, durations=durations)
        targets += _draw_soprano(dice, len(plan.chords), falls=is_last)
        cadences.append(len(targets) - 1)
        plans.append(plan)
    voicings = voice_chords(dice, [each for plan in plans for each in plan.chords], targets, cadences)
    starts = [0, *(end + 1 for end in cadences)]
    return {
        letter: replace(plan, voicings=voicings[start : end + 1])
        for letter, plan, start, end in zip(letters, plans, starts, cadences, strict=False)
    }


def _plan_line(dice: Dice, home: Key, letter: str, *, is_last: bool, pickup: float, durations: list[float]) -> Line:
    """Return the chords of a phrase: `A` at home, the last one closing there, the others perhaps in a related key."""
    key, start, cadence = home, None, "authentic"
    if letter == "A":
        cadence = dice.pick(("half", "authentic"))
    elif not is_last and dice.chance(0.8 if letter == "B" else 0.5):
        _, semitones, changes_mode, start = dice.pick(MINOR_TRIPS if home.is_minor else MAJOR_TRIPS, (5, 2, 1))
        key = Key((home.tonic + semitones) % 12, home.is_minor != changes_mode)
    elif not is_last:
        cadence = "half"
    elif pickup:
        start = "V"
    chords = build_phrase(dice, key, len(durations), cadence, start)
    durations = list(durations)
    if is_last:
        chords, durations = _end_piece(dice, key, chords, durations, pickup)
    return Line(key, cadence, chords, durations, np.zeros((0, 4), dtype=np.int64))


def _end_piece(
    dice: Dice, key: Key, chords: list[Chord], durations: list[float], pickup: float
) -> tuple[list[Chord], list[float]]:
    """Return the last phrase with a longer last chord, sometimes with an amen or a major third at the end."""
    durations[-1] += 2 * pickup
    has_major_end = key.is_minor and dice.chance(0.35)
    if has_major_end:
        chords[-1] = chord(key, "I")
    if dice.chance(0.25):
        amen = ["iv", "I" if has_major_end else "i"] if key.is_minor else [dice.pick(("IV", "iv")), "I"]
        chords = chords + [chord(key, numeral) for numeral in amen]
        durations = [*durations, 2.0, 4.0]
    return chords, durations


def _draw_soprano(dice: Dice, n_chords: int, falls: bool) -> list[float]:
    """Return the height about which the top voice of a phrase moves: an arch, a rise, a fall or a wave."""
    center, reach = dice.between(67.5, 71), dice.between(2.5, 5.0)
    place = np.linspace(0, 1, n_chords)
    shape = dice.pick(("arch", "fall") if falls else ("arch", "rise", "fall", "wave"))
    curve = {
        "arch": 2 * np.sin(np.pi * place) - 1,
        "rise": 2 * np.sin(np.pi * place * 0.7) - 1,
        "fall": 1 - 2 * place,
        "wave": np.sin(2 * np.pi * place),
    }[shape]
    return [float(height) for height in center + reach * curve]


def _join(lines: Sequence[Line]) -> Texture:
    spans = lay_out([each for line in lines for each in line.chords], [one for line in lines for one in line.durations])
    pitches = np.concatenate([line.voicings for line in lines])
    line_ends = (np.cumsum([len(line.chords) for line in lines]) - 1).tolist()
    return Texture(spans, pitches.copy(), pitches.copy(), np.zeros(pitches.shape, dtype=bool), line_ends)


def _perform(
    dice: Dice, key: Key, meter: tuple[int, int], *, pickup: float, lines: Sequence[Line], texture: Texture
) -> Piece:
    """Give the voices loudness, breath and instruments, and the piece its tempo with a rest on every cadence."""
    bounds = [texture.spans[end].onset_beats + texture.spans[end].duration_beats for end in texture.line_ends]
    base = dice.between(62, 80)
    phrases = [
        Phrase(start, end, base + dice.between(-5, 5), True) for start, end in zip([0.0, *bounds], bounds, strict=False)
    ]
    ensemble, programs = dice.pick(ENSEMBLES, (4, 2, 2, 2, 1, 1))
    parts = []
    for voice in (3, 2, 1, 0):
        lift = {3: 7, 0: 2}.get(voice, -3)
        notes = [
            Note(onset, duration, pitch, round(loudness_at(phrases, onset) + lift + dice.between(-2, 2)))
            for onset, duration, pitch in _sing(dice, texture, voice)
        ]
        parts.append(
            Part(VOICE_NAMES[voice].capitalize(), 3 - voice, programs[voice] if ensemble != "piano" else None, notes)
        )
    markers = [
        (texture.spans[end].onset_beats, f"{line.cadence} cadence in {line.key.name}")
        for line, end in zip(lines, texture.line_ends, strict=True)
    ]
    meters = [(0.0, *meter)] if not pickup else [(0.0, int(pickup), 4), (pickup, *meter)]
    tempos = _pace(dice, texture, bounds[-1])
    return Piece(f"Chorale in {key.name}", parts, tempos, meters, markers, [(0.0, key.sharps, key.is_minor)])


def _sing(dice: Dice, texture: Texture, voice: int) -> list[tuple[float, float, int]]:
    """Return (onset, duration, pitch) of one voice: halves that differ are two notes, a held one joins the last."""
    notes: list[tuple[float, float, int]] = []
    for index, span in enumerate(texture.spans):
        first, second = int(texture.first[index, voice]), int(texture.second[index, voice])
        is_end = index in texture.line_ends
        split = texture.split(index) if first != second else span.duration_beats
        length = split - (0.12 if is_end and split == span.duration_beats else 0.0)
        is_tied = bool(notes) and notes[-1][2] == first and index - 1 not in texture.line_ends
        if is_tied and (texture.held[index, voice] or (voice in (1, 2) and dice.chance(0.3))):
            notes[-1] = (notes[-1][0], notes[-1][1] + length, first)
        else:
            notes.append((span.onset_beats, length, first))
        if first != second:
            notes.append((span.onset_beats + split, span.duration_beats - split, second))
    return notes


def _pace(dice: Dice, texture: Texture, n_beats: float) -> list[tuple[float, float]]:
    """Return the tempo: even within the phrases, broad on the cadence, slower towards the end of the piece."""
    pace = min(112.0, max(60.0, n_beats * 60 / dice.between(30, 50)))
    if dice.chance(0.15):
        return [(0.0, round(pace, 3))]
    linger, tempos = dice.between(0.6, 0.8), [(0.0, round(pace, 3))]
    for end in texture.line_ends:
        is_last = end == texture.line_ends[-1]
        last, before = texture.spans[end], texture.spans[end - 1]
        tempos.append((before.onset_beats, round(pace * (0.8 if is_last else 0.92), 3)))
        tempos.append((last.onset_beats, round(pace * (0.6 if is_last else linger), 3)))
        if not is_last:
            tempos.append((last.onset_beats + last.duration_beats, round(pace * dice.between(0.98, 1.03), 3)))
    return tempos
