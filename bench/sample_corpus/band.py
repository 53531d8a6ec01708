"""Pieces for a band: a tune over a chord loop, with bass, chords, drums on channel 10, fills, breaks and pickups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.sample_corpus.accompaniment import Voiced, place_chords
from bench.sample_corpus.band_styles import (
    CRASH,
    HIGH_TOM,
    KICK,
    LOOPS,
    LOW_TOM,
    MID_TOM,
    SNARE,
    STICK,
    BandStyle,
)
from bench.sample_corpus.dice import Dice
from bench.sample_corpus.harmony import Key, Span, chord, neighbour_pitch
from bench.sample_corpus.melody import Tone, embellish
from bench.sample_corpus.midi_file import DRUM_CHANNEL, Note, Part, Piece
from bench.sample_corpus.theme import Material, Section, draw_material, sing_phrase

DRUM_LOUDNESS = {"X": 104, "x": 84, "o": 48}


@dataclass(frozen=True, slots=True)
class Block:
    """Some bars of a song: `intro`, `break`, `end`, or the letter of a section."""

    name: str
    start_beat: float
    length_beats: float
    spans: list[Span]
    tones: list[Tone]

    @property
    def is_section(self) -> bool:
        return len(self.name) == 1


def compose_band(dice: Dice, key: Key, style: BandStyle) -> Piece:
    """Return a band piece of 24-62 seconds with markers for its sections."""
    bar = style.meter[0] * 4 / style.meter[1]
    pace = dice.between(*style.quarters_per_minute)
    lead_in = dice.pick(("none", "sticks", "pickup"))
    blocks = _lay_blocks(dice, key, style, pace, 0.0 if lead_in == "none" else bar if lead_in == "sticks" else 1.0)
    voiced = place_chords([span for block in blocks for span in block.spans], 40, 58)
    lead = _play_lead(dice, blocks)
    drums = _play_drums(dice, style, blocks, bar)
    if lead_in == "sticks":
        drums += [Note(beat, 0.25, STICK, 80) for beat in _beats(style, bar)]
    if lead_in == "pickup" or blocks[0].name == "intro":
        lead = _add_pickup(dice, lead, blocks)
    bass_program, chord_program, leaders = style.instruments
    parts = [
        Part("Lead", 0, dice.pick(leaders), lead),
        Part("Chords", 1, chord_program, _play_chords(dice, style, blocks, voiced, bar)),
        Part("Bass", 2, bass_program, _play_bass(dice, style, blocks, voiced, bar)),
    ]
    if style.pad is not None:
        parts.append(Part("Pad", 3, style.pad, _play_pad(dice, voiced)))
    parts.append(Part("Drums", DRUM_CHANNEL, 0 if dice.chance(0.5) else None, drums))
    if dice.chance(0.5):
        for index, part in enumerate(parts):
            part.controls = [(0.0, 7, 96 - 4 * index), (0.0, 10, (64, 40, 64, 88, 64)[index])]
    if style.swings:
        for part in parts:
            part.notes = [_swing(note) for note in part.notes]
    end = blocks[-1].start_beat
    tempos = [(0.0, round(pace, 3)), (end, round(pace * 0.86, 3))] if dice.chance(0.5) else [(0.0, round(pace, 3))]
    meters = [(0.0, 1, 4), (1.0, *style.meter)] if lead_in == "pickup" else [(0.0, *style.meter)]
    markers = [(block.start_beat, block.name) for block in blocks]
    return Piece(
        f"{style.name.capitalize()} in {key.name}", parts, tempos, meters, markers, [(0.0, key.sharps, key.is_minor)]
    )


def _lay_blocks(dice: Dice, key: Key, style: BandStyle, pace: float, start_beat: float) -> list[Block]:
    """Return the song from its first bar on: sections of four bars, as many as time and notes allow."""
    bar = style.meter[0] * 4 / style.meter[1]
    n_sections = _count_sections(style, pace, bar)
    form = {3: "ABA", 4: "AABA", 5: "AABAB", 6: "AABBAB", 7: "AABABAB", 8: "AABBAABB"}[n_sections]
    material = draw_material(
        dice, key, style.meter, characters=(style.character, dice.pick(("syncopated", "flowing"))), center=74
    )
    sections = {letter: _write_section(dice, material, style, letter) for letter in "AB"}
    tonic = chord(key, "i" if key.is_minor else "I")
    dominant = chord(key, "V")
    blocks: list[Block] = []

    def add(name: str, spans: list[Span], tones: Sequence[Tone] = (), n_bars: int = 1) -> None:
        now = blocks[-1].start_beat + blocks[-1].length_beats if blocks else start_beat
        placed = [replace(span, onset_beats=span.onset_beats + now) for span in spans]
        moved = [replace(tone, onset_beats=tone.onset_beats + now) for tone in tones]
        blocks.append(Block(name, now, n_bars * bar, placed, moved))

    if dice.chance(0.5):
        add("intro", sections["A"].spans[:2], n_bars=2)
    break_at = dice.pick((None, len(form) - 1))
    for index, letter in enumerate(form):
        if index == break_at:
            add("break", [Span(0.0, bar, dominant)])
        section = sections[letter]
        tones = embellish(dice, section.tones, 0.3) if letter in form[:index] else section.tones
        add(letter, section.spans, tones, 4)
    add("end", [Span(0.0, bar, tonic)], [Tone(0.0, bar, _final_pitch(blocks[-1].tones[-1], tonic.root), tonic)])
    return blocks


def _count_sections(style: BandStyle, pace: float, bar: float) -> int:
    """Return how many sections of four bars, 3 to 8, give some 24-58 seconds and at most about 540 notes."""
    hits = sum(character != "." for row in style.grids[0].values() for character in row)
    per_bar = hits + len(style.bass) + 3.2 * len(style.hits) + 4.5 + (3 if style.pad is not None else 0)
    by_notes = int((540 / per_bar - 4) // 4)
    by_time = int((56 * pace / 60 / bar - 4) // 4)
    return max(3, min(8, by_notes, by_time))


def _write_section(dice: Dice, material: Material, style: BandStyle, letter: str) -> Section:
    key = material.home
    numerals = dice.pick(LOOPS[style.loops][key.is_minor])
    first, second, drive, contrast = material.motifs
    motifs = [first, second, first] if letter == "A" else [contrast, drive, contrast]
    chords = [chord(key, numeral) for numeral in numerals]
    return sing_phrase(dice, material, chords, motifs, "half")


def _final_pitch(before: Tone, root: int) -> int:
    return min(
        (before.pitch + step for step in range(-6, 6) if (before.pitch + step) % 12 == root), key=lambda p: abs(p - 72)
    )


def _play_lead(dice: Dice, blocks: Sequence[Block]) -> list[Note]:
    notes = []
    for block in blocks:
        level = {"A": 88, "B": 96}.get(block.name, 84)
        for tone in block.tones:
            loudness = level + 0.3 * (tone.pitch - 74) + 5 * (tone.onset_beats % 1 == 0) + dice.between(-4, 4)
            notes.append(Note(tone.onset_beats, tone.duration_beats * 0.92, tone.pitch, round(loudness)))
    return notes


def _add_pickup(dice: Dice, lead: list[Note], blocks: Sequence[Block]) -> list[Note]:
    """Return the lead with two or three quick notes that climb or fall by step into the first section."""
    section = next(block for block in blocks if block.is_section)
    goal, each = section.tones[0].pitch, section.spans[0].chord
    if section.tones[0].onset_beats > section.start_beat + 1e-6:
        return lead
    direction, pitches = dice.pick((1, -1, -1)), [goal]
    for _ in range(dice.pick((2, 2, 3))):
        pitches.append(neighbour_pitch(each, pitches[-1], direction) or pitches[-1] + direction * 3)
    onset, length = section.start_beat - 1.0, 1.0 / (len(pitches) - 1)
    added = [Note(onset + index * length, length * 0.9, pitch, 84) for index, pitch in enumerate(reversed(pitches[1:]))]
    return added + lead


def _bars(blocks: Sequence[Block], voiced: Sequence[Voiced]) -> list[tuple[Block, Voiced, Voiced]]:
    """Return every bar as its block, its chord and the chord that follows."""
    owners = [block for block in blocks for _ in block.spans]
    return list(zip(owners, voiced, [*voiced[1:], voiced[-1]], strict=True))


def _play_bass(
    dice: Dice, style: BandStyle, blocks: Sequence[Block], voiced: Sequence[Voiced], bar: float
) -> list[Note]:
    notes = []
    for block, here, after in _bars(blocks, voiced):
        start = here.span.onset_beats
        if not block.is_section and block.name != "intro":
            length = bar if block.name == "end" else 1.0
            notes.append(Note(start, length, here.bass, 92))
            continue
        third = here.bass + (here.span.chord.pitch_classes[1] - here.bass) % 12
        towards = 1 if after.bass < here.bass else -1
        approach = neighbour_pitch(here.span.chord, after.bass, towards) or after.bass + towards
        fifth = here.fifth if here.fifth <= 52 else here.fifth - 12
        pitches = {"1": here.bass, "3": third, "5": fifth, "8": here.bass + 12, "a": approach}
        for offset, duration, what in style.bass:
            loudness = 88 + 6 * (offset == 0) + dice.between(-4, 4)
            notes.append(Note(start + offset, duration * 0.92, pitches[what], round(loudness)))
    return notes


def _play_chords(
    dice: Dice, style: BandStyle, blocks: Sequence[Block], voiced: Sequence[Voiced], bar: float
) -> list[Note]:
    notes = []
    for block, here, _ in _bars(blocks, voiced):
        hits = style.hits
        if not block.is_section and block.name != "intro":
            hits = ((0.0, bar if block.name == "end" else 1.0),)
        for offset, duration in hits:
            onset, loudness = here.span.onset_beats + offset, round(72 + dice.between(-5, 5))
            notes += [Note(onset, duration * 0.95, pitch, loudness) for pitch in here.tones]
    return notes


def _play_pad(dice: Dice, voiced: Sequence[Voiced]) -> list[Note]:
    notes = []
    for here in voiced:
        loudness = round(58 + dice.between(-3, 3))
        notes += [
            Note(here.span.onset_beats, here.span.duration_beats * 0.98, pitch + 12, loudness)
            for pitch in here.tones[:2]
        ]
    return notes


def _play_drums(dice: Dice, style: BandStyle, blocks: Sequence[Block], bar: float) -> list[Note]:
    """Return the drums: the grid of each section, a crash where it starts, a fill where it ends."""
    notes = []
    for index, block in enumerate(blocks):
        is_quiet_intro = block.name == "intro" and dice.chance(0.5)
        if block.name == "end":
            notes += [Note(block.start_beat, 1.0, CRASH, 100), Note(block.start_beat, 0.5, KICK, 100)]
            continue
        grid = style.grids[block.name != "A"] if block.is_section else style.grids[0]
        for number in range(round(block.length_beats / bar)):
            start = block.start_beat + number * bar
            is_last = number == round(block.length_beats / bar) - 1
            fill_beats = 0.0
            if block.name == "break":
                fill_beats = bar - 1
            elif is_last and (blocks[index + 1].name != block.name or dice.chance(0.4)):
                fill_beats = dice.pick((1.0, 2.0) if bar >= 3 else (1.0,))
            until = bar - fill_beats if block.name != "break" else 0.25
            if not is_quiet_intro:
                notes += _play_grid(dice, grid, start, until)
            if fill_beats:
                notes += _fill(dice, start + bar - fill_beats, fill_beats)
        if block.is_section and (index == 0 or blocks[index - 1].name != block.name):
            notes.append(Note(block.start_beat, 1.0, CRASH, 96))
    return notes


def _play_grid(dice: Dice, grid: dict[int, str], start: float, until: float) -> list[Note]:
    return [
        Note(start + step / 4, 0.25, drum, round(DRUM_LOUDNESS[character] + dice.between(-5, 5)))
        for drum, row in grid.items()
        for step, character in enumerate(row)
        if character != "." and step / 4 < until - 1e-6
    ]


def _fill(dice: Dice, start: float, length: float) -> list[Note]:
    """Return a fill that walks down from the snare over the toms, louder towards its end."""
    step = dice.pick((0.25, 0.5)) if length > 1 else 0.25
    drums = (SNARE, HIGH_TOM, MID_TOM, LOW_TOM)
    n_steps = round(length / step)
    notes = []
    for index in range(n_steps):
        if dice.chance(0.15) and index:
            continue
        drum = drums[min(3, index * 4 // n_steps)]
        notes.append(Note(start + index * step, 0.25, drum, round(70 + 30 * index / n_steps + dice.between(-4, 4))))
    return notes


def _beats(style: BandStyle, bar: float) -> list[float]:
    step = 1.5 if style.meter[1] == 8 else 1.0
    return [index * step for index in range(round(bar / step))]


def _swing(note: Note) -> Note:
    """Return the note with its beat bent so that the second eighth falls on the last third."""
    start, end = _bend(note.onset_beats), _bend(note.onset_beats + note.duration_beats)
    return replace(note, onset_beats=start, duration_beats=max(0.05, end - start))


def _bend(beat: float) -> float:
    whole, rest = divmod(beat, 1.0)
    return whole + (rest * 4 / 3 if rest <= 0.5 else 2 / 3 + (rest - 0.5) * 2 / 3)
