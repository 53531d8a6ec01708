"""Sections of a piece: harmony and melody of four or eight bars, in phrases that answer each other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.sample_corpus.dice import Dice
from bench.sample_corpus.harmony import Chord, Key, Span, build_phrase, can_build_phrase, lay_out
from bench.sample_corpus.melody import Meter, Motif, Tone, draw_motif, end_motif, fit_melody, lay_slots

PHRASE_BARS = 4


@dataclass(frozen=True, slots=True)
class Section:
    """Music that may be heard several times; its beats count from its own start."""

    length_beats: float
    spans: list[Span]
    tones: list[Tone]
    cadences: list[tuple[float, str, Key]]  # beat of the last chord of a phrase, kind, key

    def shift(self, beats: float) -> "Section":
        """Return the same section `beats` later."""
        return Section(
            self.length_beats,
            [replace(span, onset_beats=span.onset_beats + beats) for span in self.spans],
            [replace(tone, onset_beats=tone.onset_beats + beats) for tone in self.tones],
            [(beat + beats, cadence, key) for beat, cadence, key in self.cadences],
        )


@dataclass(frozen=True, slots=True)
class Material:
    """What all sections of one piece share."""

    home: Key
    meter: Meter
    bar_chords: tuple[float, ...]  # lengths of the chords of an ordinary bar, quarter notes
    motifs: tuple[Motif, Motif, Motif, Motif]  # first and second bar, drive to the cadence, contrast
    low: int
    high: int
    center: float  # pitch about which the melody moves

    @property
    def bar_beats(self) -> float:
        return self.meter[0] * 4 / self.meter[1]


def draw_material(
    dice: Dice, home: Key, meter: Meter, *, characters: tuple[str, str], center: int, bar_chords: tuple[float, ...] = ()
) -> Material:
    """Return the motifs and ranges of a piece; `characters` name the rhythms of the first and the second bar."""
    motifs = (
        draw_motif(dice, meter, characters[0]),
        draw_motif(dice, meter, characters[1]),
        draw_motif(dice, meter, characters[0]),
        draw_motif(dice, meter, dice.pick(("flowing", "calm", characters[1]))),
    )
    return Material(
        home,
        meter,
        bar_chords or (meter[0] * 4 / meter[1],),
        motifs,
        center - 10,
        center + 11,
        center + dice.between(-1, 2),
    )


def compose_section(dice: Dice, material: Material, letter: str, n_bars: int, is_last: bool) -> Section:
    """Return a section of 4 or 8 bars: `A` states the theme at home, other letters go elsewhere and lead back."""
    if letter == "A":
        return _state_theme(dice, material, n_bars)
    home = material.home
    key, start = _contrasting_key(dice, home, letter)
    first, second, drive, contrast = material.motifs
    one, two = (contrast, second.invert()) if letter == "B" else (first.invert(), contrast)
    back = "authentic" if is_last else "half"
    if n_bars == PHRASE_BARS:
        if not is_last and dice.chance(0.5):
            key, start = home.relative(), "vi" if home.is_minor else "VI"
        else:
            key, start = home, dice.pick(("VI", "iv") if home.is_minor else ("vi", "IV"))
        chords = build_phrase(dice, key, _n_chords(material), back, start)
        return _join([sing_phrase(dice, material, chords, [one, two, one], back)])
    away = build_phrase(dice, key, _n_chords(material), "authentic", start)
    statement = sing_phrase(dice, material, away, [one, two, one], "authentic")
    home_start = "IV" if not home.is_minor else "iv"
    returning = build_phrase(dice, home, _n_chords(material), back, dice.pick((None, home_start)))
    answer = sing_phrase(dice, material, returning, [one, drive, drive], back, before=statement.tones[-1].pitch)
    return _join([statement, answer])


def _state_theme(dice: Dice, material: Material, n_bars: int) -> Section:
    """Return a theme: four bars that close, or four that stay open and four that begin alike and close."""
    first, second, drive, _ = material.motifs
    n_chords = _n_chords(material)
    if n_bars == PHRASE_BARS:
        chords = build_phrase(dice, material.home, n_chords, "authentic")
        return _join([sing_phrase(dice, material, chords, [first, second, first], "authentic")])
    opening = build_phrase(dice, material.home, n_chords, "half")
    question = sing_phrase(dice, material, opening, [first, second, first], "half")
    for n_shared in (2, 1):  # bars
        shared = opening[: n_shared * len(material.bar_chords)]
        n_left = n_chords - len(shared) + 1
        if can_build_phrase(material.home, n_left, "authentic", shared[-1].numeral):
            break
    closing = shared + build_phrase(dice, material.home, n_left, "authentic", shared[-1].numeral)[1:]
    n_fixed = sum(length > 0 for motif in (first, second)[:n_shared] for length in motif.lengths)
    fixed = [tone.pitch for tone in question.tones[:n_fixed]]
    answer = sing_phrase(dice, material, closing, [first, second, drive], "authentic", fixed=fixed)
    return _join([question, answer])


def _contrasting_key(dice: Dice, home: Key, letter: str) -> tuple[Key, str]:
    """Return a related key and the chord on which to enter it from the home tonic."""
    options = [(home.relative(), "vi" if home.is_minor else "VI"), (home.on_degree(5), "i" if home.is_minor else "V")]
    if not home.is_minor:
        options.append((home.on_degree(7), "IV"))
    return options[0] if letter == "B" and dice.chance(0.4) else dice.pick(options)


def _n_chords(material: Material) -> int:
    return len(material.bar_chords) * (PHRASE_BARS - 1) + 1


def sing_phrase(
    dice: Dice,
    material: Material,
    chords: Sequence[Chord],
    motifs: Sequence[Motif],
    cadence: str,
    *,
    fixed: Sequence[int] = (),
    before: int | None = None,
) -> Section:
    """Return four bars over the chords: the motifs in turn, then a last bar that rests on the cadence.

    Args:
        chords: as many as the material puts into three ordinary bars, and one.
        cadence: `authentic` ends on the root of the last chord, `half` on any of its tones.
        fixed: pitches with which the melody begins.
        before: pitch of the note just before.
    """
    bar = material.bar_beats
    spans = lay_out(chords, [*material.bar_chords * (PHRASE_BARS - 1), bar])
    slots = lay_slots(
        dice, [*motifs, end_motif(dice, bar, cadence)], spans, bar_beats=bar, center=material.center, cadence=cadence
    )
    key = chords[-1].key
    tones = fit_melody(dice, key, slots, low=material.low, high=material.high, fixed=fixed, before=before)
    return Section(bar * PHRASE_BARS, spans, tones, [(bar * (PHRASE_BARS - 1), cadence, key)])


def _join(phrases: Sequence[Section]) -> Section:
    placed, now = [], 0.0
    for phrase in phrases:
        placed.append(phrase.shift(now))
        now += phrase.length_beats
    return Section(
        now,
        [span for phrase in placed for span in phrase.spans],
        [tone for phrase in placed for tone in phrase.tones],
        [cadence for phrase in placed for cadence in phrase.cadences],
    )
