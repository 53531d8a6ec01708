"""Settings of a dataset: sources, limits, filters, groups, splits, augmentation, windows, encoding."""

import math
import re
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from pydantic import Field

from tasks.config.checks import require
from tasks.config.source_limits import SourceLimits
from tasks.music.midi.limits import ReadLimits
from tasks.music.tokenizers.oore import OoreConfig
from tasks.music.tokenizers.registry import TokenizerConfig

MIN_READING_BYTES = 2**26
_SIGNATURE = re.compile(r"([1-9]\d{0,2})/(1|2|4|8|16|32|64|128)")  # of time
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Copies of each training piece; the other splits are never augmented.

    Every transposition with every stretch and every shift of velocity, or `n_sampled` of them drawn for each piece.

    Args:
        velocity_shifts: steps of MIDI velocity; notes stay within 1-127.
        n_sampled: variants drawn for each piece besides the piece itself; 0: all of them. Equal draws count once.
        change_probability: of a drawn variant, for each of the changes above; otherwise that one is left as it is.
        swap_probability: of a variant, for each part, to be played by another program of its family of eight.
        drop_probability: of a variant, for each part, to be left out; one part always stays.
        out_of_range: a variant with a note outside 0-127 is left out, or such notes are; both are counted.
        seed: of the draws, which depend on it and on the piece alone.
    """

    transpositions: tuple[int, ...] = (-2, -1, 0, 1, 2)  # semitones
    stretches: tuple[float, ...] = (1 / 1.1, 1 / 1.05, 1.0, 1.05, 1.1)  # ratio of new to old length
    velocity_shifts: tuple[int, ...] = (0,)
    n_sampled: int = 0
    change_probability: float = 1.0
    swap_probability: float = 0.0
    drop_probability: float = 0.0
    out_of_range: Literal["leave_variant_out", "leave_notes_out"] = "leave_variant_out"
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.transpositions) > 0, "transpositions is empty; (0,) means none")
        require(len(self.stretches) > 0, "stretches is empty; (1.0,) means none")
        require(
            all(abs(t) <= 48 for t in self.transpositions), f"transpositions={self.transpositions} outside -48 to 48"
        )
        require(all(0.1 <= s <= 10 for s in self.stretches), f"stretches={self.stretches} outside 0.1 to 10")
        require(len(self.velocity_shifts) > 0, "velocity_shifts is empty; (0,) means none")
        require(
            all(abs(v) <= 64 for v in self.velocity_shifts), f"velocity_shifts={self.velocity_shifts} outside -64 to 64"
        )
        require(0 <= self.n_sampled <= 1000, f"n_sampled={self.n_sampled} outside 0 to 1000")
        for name in ("change_probability", "swap_probability", "drop_probability"):
            require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} outside 0 to 1")
        require(self.seed >= 0, f"seed={self.seed} is below 0")
        for name in ("transpositions", "stretches", "velocity_shifts"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"{name}={values} names a value twice")


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """Pieces cut into windows of some bars each, every one a row of its own; 0 bars: pieces stay whole.

    The last window of a piece is its last `bars` bars, so that no bar is lost.
    """

    bars: int = 0
    hop_bars: int = 0  # from one window to the next; 0: as many as a window has

    def __post_init__(self) -> None:
        require(0 <= self.bars <= 1024, f"bars={self.bars} outside 0 to 1024")
        require(0 <= self.hop_bars <= self.bars, f"hop_bars={self.hop_bars} outside 0 to bars={self.bars}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParseConfig:
    """What reading a file may use, and how large a shard of songs gets."""

    read: ReadLimits = field(default_factory=ReadLimits)
    seconds: float = 10.0  # of CPU time for one batch of files, besides 2 s for each MiB of them
    memory_bytes: int = 4 * 2**30  # of one reading process
    shard_files: int = 1024
    shard_bytes: int = 8 * 2**20  # of MIDI

    def __post_init__(self) -> None:
        for name in ("seconds", "shard_files", "shard_bytes"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} is not above 0")
        require(
            self.memory_bytes >= MIN_READING_BYTES,
            f"memory_bytes={self.memory_bytes} is below {MIN_READING_BYTES}, with which nothing can be read",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """Which accepted pieces stay in a dataset; as it stands, all of them. Every limit is itself allowed.

    Pitches, programs and shares speak of pitched notes; on a piece of drums alone only the other settings decide.
    """

    min_notes: int = 0  # notes, drums too
    max_notes: int = 0  # notes; 0: any number
    min_seconds: float = 0.0  # end of the last note
    max_seconds: float = 0.0  # 0: any length
    min_notes_per_second: float = 0.0  # density: all notes over the end of the last one
    max_notes_per_second: float = 0.0  # 0: any density
    pitch_min: int = 0  # MIDI pitch; a piece with one note outside pitch_min to pitch_max is left out
    pitch_max: int = 127
    max_polyphony: int = 0  # notes at one moment, drums too; 0: any number
    max_mean_polyphony: float = 0.0  # notes sounding, averaged over the time in which any does; 0: any number
    programs_allowed: tuple[int, ...] = ()  # General MIDI programs 0-127, nothing else; empty: all
    programs_refused: tuple[int, ...] = ()  # a piece with one of these is left out
    drums: Literal["any", "none", "only"] = "any"  # none: no drum note; only: nothing but drum notes
    time_signatures: tuple[str, ...] = ()  # such as 4/4, nothing else; a piece that states none is in 4/4; empty: all
    min_distinct_pitches: int = 0  # different pitches
    max_share_of_one_pitch: float = 1.0  # of the pitched notes, on the most common pitch; 1: a monotone piece too
    max_note_seconds: float = 0.0  # the longest note, drums too; 0: any length

    def __post_init__(self) -> None:
        for name in ("notes", "seconds", "notes_per_second"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            require(not high or low <= high, f"min_{name}={low} is above max_{name}={high}")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, int | float):
                require(0 <= value < math.inf, f"{entry.name}={value} is not a number from 0 on")
        require(
            self.pitch_min <= self.pitch_max <= 127,
            f"pitch_min={self.pitch_min} to pitch_max={self.pitch_max} is no range within 0-127",
        )
        require(
            0 < self.max_share_of_one_pitch <= 1,
            f"max_share_of_one_pitch={self.max_share_of_one_pitch} outside 0 to 1, 0 not included",
        )
        require(
            self.min_distinct_pitches <= 128, f"min_distinct_pitches={self.min_distinct_pitches}, but there are 128"
        )
        for name in ("programs_allowed", "programs_refused"):
            numbers = getattr(self, name)
            require(all(0 <= number <= 127 for number in numbers), f"{name}={numbers} outside 0-127")
        both = sorted(set(self.programs_allowed) & set(self.programs_refused))
        require(not both, f"programs {both} are in programs_allowed and in programs_refused")
        for signature in self.time_signatures:
            match = _SIGNATURE.fullmatch(signature)
            require(
                match is not None and int(match[1]) <= 255,
                f"time_signatures: {signature!r} is not like 4/4 (1-255 over a power of two up to 128)",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    """When two pieces belong to one near-duplicate group.

    They do when the share of the smaller piece's shingles that the larger one holds, estimated from 128 MinHash values,
    reaches `min_containment + small_piece_margin / sqrt(shingles of the smaller piece)`, at most 0.95: few shingles
    coincide sooner. The defaults are measured by `bench/bench_duplicates.py`.
    """

    enabled: bool = True  # off: every piece is a group of its own
    min_containment: float = 0.15
    small_piece_margin: float = 2.0
    min_equal: int = 18  # of the 128 MinHash values
    reach: int = 4  # neighbours in a bucket that each piece is compared with, beside the bucket's first
    max_group_pieces: int = 100  # larger groups are suspected of chaining: see `group_pieces`
    max_group_share: float = 0.01  # of all pieces; the larger of the two limits holds

    def __post_init__(self) -> None:
        for name, low, high in (
            ("min_containment", 0.0, 1.0),
            ("small_piece_margin", 0.0, 10.0),
            ("min_equal", 1, 128),
            ("reach", 1, 64),
            ("max_group_pieces", 2, 2**31 - 1),
            ("max_group_share", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} outside {low} to {high}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakageConfig:
    """Where a rebuild fails: a held-out piece is leaked when one train piece holds more of it than `piece_bound`.

    Common figures are spread over many pieces; a copy is found in one. So the bound asks about the nearest train piece,
    not about train as a whole. The defaults are measured by `bench/bench_duplicates.py`.
    """

    piece_bound: float = 0.8  # share of the piece's n-grams
    max_leaked_share: float = 0.001  # of the held-out pieces: below 1,000 of them none may leak

    def __post_init__(self) -> None:
        for name in ("piece_bound", "max_leaked_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} outside 0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """What becomes a dataset version. `name`, `sources` and `rehash` do not change it; everything else does."""

    sources: tuple[str, ...] = ()  # folders, files, lists, archives, addresses, catalog names; none: the sample corpus
    name: str = ""  # empty: made of the first source's name
    rehash: bool = False  # read every file again, also those whose size and times have not changed
    licences: tuple[str, ...] = ()  # accept only files whose source states one of these; empty: all
    source_limits: SourceLimits = field(default_factory=SourceLimits)
    parse: ParseConfig = field(default_factory=ParseConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    groups: GroupConfig = field(default_factory=GroupConfig)
    near_duplicates: Literal["group", "drop"] = "group"  # keep them all in one split, or one of each group
    split: Literal["official", "seeded"] = "official"  # the source's own split where it states one, or never
    validation_share: float = 0.1  # of the near-duplicate groups
    test_share: float = 0.1
    split_seed: int = 0
    leakage: LeakageConfig = field(default_factory=LeakageConfig)
    max_reject_share: float = 0.5  # a rebuild with more rejected files than this fails; filters and licences count too
    encoding: Annotated[TokenizerConfig, Field(discriminator="name")] = field(default_factory=OoreConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        require(
            not self.name or bool(NAME_PATTERN.fullmatch(self.name)),
            f"name={self.name!r} is not like {NAME_PATTERN.pattern}",
        )
        require(self.split_seed >= 0, f"split_seed={self.split_seed} is below 0")
        for name in ("validation_share", "test_share"):
            require(0 < getattr(self, name) < 1, f"{name}={getattr(self, name)} outside 0 to 1")
        require(self.validation_share + self.test_share < 1, "validation_share + test_share leave nothing to train on")
        require(0 <= self.max_reject_share <= 1, f"max_reject_share={self.max_reject_share} outside 0 to 1")
        require(len(set(self.sources)) == len(self.sources), "sources names a source twice")
