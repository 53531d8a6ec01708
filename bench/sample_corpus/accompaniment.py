"""What lies under a melody: chords in close position that move little, a bass line, and figures that break them up."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.sample_corpus.harmony import Chord, Span


@dataclass(frozen=True, slots=True)
class Figure:
    """A pattern that starts anew with every bar and every chord.

    Each step lasts `unit_beats` and names what sounds: `b` the bass, `B` the fifth of the chord in the bass, `0` `1`
    `2` the tones of the close chord from below, `u` the lowest of them an octave up, nothing for a rest.
    """

    unit_beats: float
    steps: tuple[str, ...]
    length: float = 1.0  # of a note, as a share of its unit
    holds_bass: bool = False  # the bass sounds until the chord changes


@dataclass(frozen=True, slots=True)
class Voiced:
    """A chord with its place on the keyboard."""

    span: Span
    bass: int
    fifth: int
    tones: tuple[int, ...]


def place_chords(spans: Sequence[Span], bass_center: int, center: int) -> list[Voiced]:
    """Return the chords in close position about the pitch `center`, each near the one before."""
    placed: list[Voiced] = []
    for span in spans:
        old_bass = placed[-1].bass if placed else bass_center
        bass = min(
            (pitch for pitch in range(bass_center - 8, bass_center + 10) if pitch % 12 == span.chord.bass),
            key=lambda pitch: (abs(pitch - old_bass) + 0.7 * abs(pitch - bass_center), pitch),
        )
        fifth_class = span.chord.pitch_classes[2]
        fifth = bass + (fifth_class - bass) % 12 if (fifth_class - bass) % 12 <= 7 else bass - (bass - fifth_class) % 12
        old = placed[-1].tones if placed else (center - 4, center, center + 4)
        placed.append(Voiced(span, bass, fifth, _close_position(span.chord, old, center, bass)))
    return placed


def _close_position(each: Chord, old: Sequence[int], center: int, bass: int) -> tuple[int, ...]:
    # Of four tones the bass has one already; three in close position stay clear of clusters.
    classes = [tone for tone in each.pitch_classes if len(each.pitch_classes) == 3 or tone != each.bass]
    options = []
    for lowest in range(center - 10, center + 4):
        if lowest % 12 in classes:
            tones = sorted(lowest + (tone - lowest) % 12 for tone in classes)
            motion = sum(abs(tone - before) for tone, before in zip(tones, old, strict=False))
            crowding = 6.0 * (tones[0] <= bass + 2)
            options.append((motion + crowding + 0.8 * abs(sum(tones) / len(tones) - center), tuple(tones)))
    return min(options)[1]


def play_figure(voiced: Sequence[Voiced], figure: Figure, bar_beats: float) -> list[tuple[float, float, int, bool]]:
    """Return (onset, duration, pitch, is_bass) of the chords broken up by a figure, in quarter notes."""
    played = []
    for chord in voiced:
        start, end = chord.span.onset_beats, chord.span.onset_beats + chord.span.duration_beats
        roles = {"b": chord.bass, "B": chord.fifth, "u": chord.tones[0] + 12}
        roles |= {str(index): tone for index, tone in enumerate(chord.tones)}
        index, now = 0, start
        while now < end - 1e-6:
            for role in figure.steps[index % len(figure.steps)]:
                length = min(figure.unit_beats * figure.length, end - now)
                if role == "b" and figure.holds_bass:
                    length = min(end - now, bar_beats)
                if role in roles:
                    played.append((now, length, roles[role], role in "bB"))
            index, now = index + 1, now + figure.unit_beats
            if abs((now / bar_beats) - round(now / bar_beats)) < 1e-6:
                index = 0
    return played
