"""Settings and ids of the `remi` encoding: the meaning of each token, and the length of its times in ticks.

Source: Huang and Yang 2020, "Pop Music Transformer" (REMI); von Rütte et al. 2022, FIGARO (many programs in one
stream). Ids and names are those of MidiTok 3.1.0 for the same settings.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import FloatArray, IntArray

DRUMS = -1  # represents a program where a part is drums
N_PROGRAMS = 129  # 0-127, and the drums after them
PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# Intervals above the lowest note; inversions do not count.
CHORDS = {
    "min": (0, 3, 7),
    "maj": (0, 4, 7),
    "dim": (0, 3, 6),
    "aug": (0, 4, 8),
    "sus2": (0, 2, 7),
    "sus4": (0, 5, 7),
    "7dom": (0, 4, 7, 10),
    "7min": (0, 3, 7, 10),
    "7maj": (0, 4, 7, 11),
    "7halfdim": (0, 3, 6, 10),
    "7dim": (0, 3, 6, 9),
    "7aug": (0, 4, 8, 11),
    "9maj": (0, 4, 7, 10, 14),
    "9min": (0, 4, 7, 10, 13),
}
DENOMINATOR_MAX = 64
MAX_DURATIONS = 1 << 10  # of a note's sort key, ten bits say which duration it has
MAX_POSITIONS = 1 << 12
COMMON_TIME = "4/4"
DEFAULT_VELOCITY = 100  # of decoded notes where velocity is left out

Grid = list[tuple[int, int, int]]  # beats from, beats to, steps of each beat


@dataclass(frozen=True, kw_only=True, slots=True)
class RemiConfig:
    """Settings of the tokenizer; by default those of the Hourglass model (MidiTok's settings in brackets).

    Args:
        n_velocities: levels of velocity, 1-127 [num_velocities]; 0 leaves velocity out [use_velocities=False].
        chords: whether chords are named before their notes [use_chords]: by kind, or with their lowest note too
            [chord_tokens_with_root_note].
        tempos: write tempo changes [use_tempos].
        n_tempos: levels of tempo, 1-1000, between `tempo_min` and `tempo_max` [num_tempos].
        tempo_min, tempo_max: beats a minute, 4-1000 [tempo_range].
        log_tempos: levels of tempo in even ratios instead of evenly spaced [log_tempos].
        repeat_tempos: write a change to the level that holds already [not delete_equal_successive_tempo_changes].
        time_signatures: write each bar's time signature [use_time_signatures]; otherwise all bars are in 4/4.
        meters: time signatures that have an id [time_signature_range]; a change to another is left out.
        rests: write silences as rests [use_rests].
        grid: durations as "from-to:steps", in beats and steps a beat [beat_res]; the most steps are the positions of
            a beat, and the others divide them.
        rest_grid: lengths of rests likewise [beat_res_rest].
        pitch_min, pitch_max: pitches kept, both included [pitch_range].
        drum_pitches: drums have pitches of their own [use_pitchdrum_tokens].
        drum_pitch_min, drum_pitch_max: pitches of drums kept, both included [drums_pitch_range].
        duplicates: which of several notes of one program at one pitch and tick is kept. MidiTok keeps the shortest, the
            softest of equals; `longest` keeps the longest, the loudest of equals.
    """

    name: Literal["remi"] = "remi"
    n_velocities: int = 16
    chords: Literal["none", "kind", "root"] = "kind"
    tempos: bool = False
    n_tempos: int = 32
    tempo_min: float = 40.0
    tempo_max: float = 250.0
    log_tempos: bool = False
    repeat_tempos: bool = False
    time_signatures: bool = True
    meters: tuple[str, ...] = ("3/8", "12/8", "6/8", "5/4", "6/4", "3/4", "2/4", "1/4", "4/4")
    rests: bool = False
    grid: tuple[str, ...] = ("0-4:8", "4-12:4")
    rest_grid: tuple[str, ...] = ("0-1:8", "1-2:4", "2-12:2")
    pitch_min: int = 21
    pitch_max: int = 109
    drum_pitches: bool = True
    drum_pitch_min: int = 27
    drum_pitch_max: int = 88
    duplicates: Literal["shortest", "longest"] = "shortest"

    def __post_init__(self) -> None:
        _require(0 <= self.n_velocities <= 127, f"n_velocities={self.n_velocities} outside 0-127")
        for low, high in (("pitch_min", "pitch_max"), ("drum_pitch_min", "drum_pitch_max")):
            pair = getattr(self, low), getattr(self, high)
            _require(0 <= pair[0] <= pair[1] <= 127, f"{low}={pair[0]}, {high}={pair[1]} are no range within 0-127")
        self._check_tempos()
        steps = max(row[2] for row in parse_grid("grid", self.grid))
        self._check_grid("grid", steps)
        if self.rests:
            self._check_grid("rest_grid", steps)
        self._check_meters(steps)

    def _check_grid(self, field: str, steps: int) -> None:
        for _, _, own in parse_grid(field, getattr(self, field)):
            _require(steps % own == 0, f"{field}: {own} steps of a beat do not divide the {steps} of the finest")

    def _check_tempos(self) -> None:
        _require(1 <= self.n_tempos <= 1000, f"n_tempos={self.n_tempos} outside 1-1000")
        _require(
            4 <= self.tempo_min <= self.tempo_max <= 1000,
            f"tempo_min={self.tempo_min}, tempo_max={self.tempo_max} are no range within 4-1000 beats a minute",
        )
        _require(
            len(set(tempo_levels(self).tolist())) == self.n_tempos,
            f"n_tempos={self.n_tempos} levels between {self.tempo_min} and {self.tempo_max} are not all different",
        )

    def _check_meters(self, steps: int) -> None:
        meters = [parse_meter(meter) for meter in self.meters]
        _require(COMMON_TIME in self.meters, f"meters={self.meters} lacks {COMMON_TIME}, which music without one has")
        _require(len(set(meters)) == len(meters), f"meters={self.meters} names one twice")
        for _, denominator in meters:
            _require(
                steps * denominator % 4 == 0,
                f"meters of denominator {denominator} need steps of a beat that 4 quarters share; grid has {steps}",
            )
        longest = steps * max(numerator for numerator, _ in meters)
        _require(longest <= MAX_POSITIONS, f"a bar of {longest} positions, limit {MAX_POSITIONS}")


class Kind(IntEnum):
    """What a token says; the values are in the order of the ids."""

    SPECIAL = 0
    BAR = 1
    PITCH = 2
    VELOCITY = 3
    DURATION = 4
    POSITION = 5
    DRUM_PITCH = 6
    CHORD = 7
    REST = 8
    TEMPO = 9
    PROGRAM = 10
    METER = 11


class RemiVocabulary:
    """Ids of a config.

    Attributes:
        names: of all ids.
        kind_V: uint8[V], the `Kind` of each id.
        value_V: int32[V]: a pitch, a velocity, a program (-1 for drums), otherwise the place of the id within its kind.
        first: of each kind, its first id; of a kind that has none, where it would be.
        steps: positions of a beat.
        meters: (numerator, denominator) of each meter that has an id; 4/4 alone where none has.
        meter_index: the place of 4/4 among them.
    """

    def __init__(self, config: RemiConfig) -> None:
        self.config = config
        self.durations = grid_points(parse_grid("grid", config.grid))
        self.rests = grid_points(parse_grid("rest_grid", config.rest_grid)) if config.rests else []
        self.steps = max(row[2] for row in parse_grid("grid", config.grid))
        self.meters = [parse_meter(meter) for meter in config.meters] if config.time_signatures else [(4, 4)]
        self.common_time = self.meters.index((4, 4))
        self.velocities = np.linspace(0, 127, config.n_velocities + 1).astype(np.int64)[1:]
        self.tempos = tempo_levels(config) if config.tempos else np.zeros(0)
        self.n_positions = self.steps * max(numerator for numerator, _ in self.meters)
        self.names, self.kind_V, self.value_V, self.first = self._lay_out()
        self.ids = {name: token for token, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def _lay_out(self) -> tuple[list[str], NDArray[np.uint8], NDArray[np.int32], dict[Kind, int]]:
        config, programs = self.config, [*range(128), DRUMS]
        pitches = range(config.pitch_min, config.pitch_max + 1)
        drums = range(config.drum_pitch_min, config.drum_pitch_max + 1) if config.drum_pitches else range(0)
        meters = [f"{numerator}/{denominator}" for numerator, denominator in self.meters if config.time_signatures]
        groups: list[tuple[Kind, str, list[str], list[int] | None]] = [
            (Kind.SPECIAL, "", ["PAD_None", "BOS_None", "EOS_None", "MASK_None"], None),
            (Kind.BAR, "", ["Bar_None"], None),
            (Kind.PITCH, "Pitch_", [str(pitch) for pitch in pitches], list(pitches)),
            (Kind.VELOCITY, "Velocity_", [str(v) for v in self.velocities.tolist()], self.velocities.tolist()),
            (Kind.DURATION, "Duration_", [".".join(map(str, point)) for point in self.durations], None),
            (Kind.POSITION, "Position_", [str(position) for position in range(self.n_positions)], None),
            (Kind.DRUM_PITCH, "PitchDrum_", [str(pitch) for pitch in drums], list(drums)),
            (Kind.CHORD, "Chord_", _chord_names(config.chords), None),
            (Kind.REST, "Rest_", [".".join(map(str, point)) for point in self.rests], None),
            (Kind.TEMPO, "Tempo_", [str(tempo) for tempo in self.tempos.tolist()], None),
            (Kind.PROGRAM, "Program_", [str(program) for program in programs], programs),
            (Kind.METER, "TimeSig_", meters, None),
        ]
        names, kinds, values, first = [], [], [], {}
        for kind, prefix, members, meanings in groups:
            first[kind] = len(names)
            names += [prefix + member for member in members]
            kinds += [kind] * len(members)
            values += meanings or range(len(members))
        return names, np.array(kinds, np.uint8), np.array(values, np.int32), first


def levels_of(vocabulary: RemiVocabulary) -> int:
    """Return how many sizes a beat can have: one where the denominators are equal, otherwise one for each halving."""
    denominators = [denominator for _, denominator in vocabulary.meters]
    return (max(*denominators, 4) // min(denominators)).bit_length()


def ticks_of(points: Grid, steps: int, n_levels: int) -> IntArray:
    """Return int64[n_levels, len(points)]: ticks of each length where a beat has `steps` << level ticks."""
    beat, step, resolution = np.array(points, np.int64).reshape(-1, 3).T
    ticks_of_beat = steps << np.arange(n_levels)[:, None]
    return (beat * resolution + step) * ticks_of_beat // np.maximum(resolution, 1)


def tempo_levels(config: RemiConfig) -> FloatArray:
    """Return the levels of tempo in beats a minute, rising."""
    space = np.geomspace if config.log_tempos else np.linspace
    return space(config.tempo_min, config.tempo_max, config.n_tempos).round(2)


def grid_points(rows: Grid) -> Grid:
    """Return the lengths of a grid as (beats, steps, steps of a beat), rising, the shortest above 0."""
    points = [(beat, step, steps) for begin, end, steps in rows for beat in range(begin, end) for step in range(steps)]
    return [*points[1:], (rows[-1][1], 0, rows[-1][2])]


def parse_grid(field: str, texts: tuple[str, ...]) -> Grid:
    """Return rows of beats from, beats to, steps of a beat.

    Raises:
        ValueError: the ranges do not follow one another from 0, or are too many.
    """
    rows, reached, n_points = [], 0, 0
    for text in texts:
        bounds, _, steps = text.partition(":")
        begin, _, end = bounds.partition("-")
        _require(begin.isdigit() and end.isdigit() and steps.isdigit(), f"{field}: {text!r} is not like '0-4:8'")
        row = int(begin), int(end), int(steps)
        _require(
            row[0] == reached < row[1] and row[2] > 0, f"{field}: {text!r} does not go on from beat {reached} in steps"
        )
        reached, n_points = row[1], n_points + (row[1] - row[0]) * row[2]
        rows.append(row)
    _require(0 < n_points < MAX_DURATIONS, f"{field}: {n_points} lengths outside 1-{MAX_DURATIONS - 1}")
    return rows


def parse_meter(text: str) -> tuple[int, int]:
    """Return numerator and denominator; ValueError where they are out of range."""
    numerator, _, denominator = text.partition("/")
    _require(numerator.isdigit() and denominator.isdigit(), f"meter {text!r} is not like '3/4'")
    meter = int(numerator), int(denominator)
    is_power = meter[1] > 0 and meter[1] & (meter[1] - 1) == 0
    _require(
        1 <= meter[0] <= 255 and is_power and meter[1] <= DENOMINATOR_MAX,
        f"meter {text!r}: 1-255 beats of a power of two up to {DENOMINATOR_MAX} are possible",
    )
    return meter


def _chord_names(chords: str) -> list[str]:
    if chords == "root":
        return [f"{root}:{kind}" for kind in CHORDS for root in PITCH_CLASSES]
    return list(CHORDS) if chords == "kind" else []


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
