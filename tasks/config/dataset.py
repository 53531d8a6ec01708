"""Settings of a dataset: sources, limits, filters, groups, splits, augmentation, windows, encoding."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from models.settings import Settings, check_settings, setting
from tasks.config.docstrings import describe_fields
from tasks.config.source_limits import SourceLimits
from tasks.music.midi.limits import ReadLimits
from tasks.music.tokenizers.oore import OoreConfig
from tasks.music.tokenizers.registry import TokenizerConfig

for _kind in (ReadLimits, *get_args(TokenizerConfig)):
    describe_fields(_kind)

MIN_READING_BYTES = 2**26
_SIGNATURE = re.compile(r"([1-9]\d{0,2})/(1|2|4|8|16|32|64|128)")  # of time
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Copies of each training piece; the other splits are never augmented.

    Every transposition with every stretch, shift of velocity and flip, or `n_sampled` of them drawn for each piece.
    """

    transpositions: tuple[int, ...] = setting(
        (-2, -1, 0, 1, 2), "Semitones; (0,) for none.", each={"ge": -48, "le": 48}
    )
    stretches: tuple[float, ...] = setting(
        (1 / 1.1, 1 / 1.05, 1.0, 1.05, 1.1), "Ratios of new to old length; (1.0,) for none.", each={"ge": 0.1, "le": 10}
    )
    velocity_shifts: tuple[int, ...] = setting(
        (0,), "Steps of MIDI velocity; notes stay within 1-127.", each={"ge": -64, "le": 64}
    )
    flip: bool = setting(False, "Each variant also upside down: pitch becomes 127 - pitch, then it is transposed.")
    n_sampled: int = setting(
        0, "Variants drawn for each piece besides the piece itself; equal draws count once. 0: all of them.",
        ge=0, le=1000,
    )  # fmt: skip
    change_probability: float = setting(1.0, "Probability of each of the changes above in a drawn variant.", ge=0, le=1)
    swap_probability: float = setting(
        0.0, "Probability of a part of a variant to be played by another program of its family of eight.", ge=0, le=1
    )
    drop_probability: float = setting(
        0.0, "Probability of a part of a variant to be left out; one part always stays.", ge=0, le=1
    )
    out_of_range: Literal["leave_variant_out", "leave_notes_out"] = setting(
        "leave_variant_out",
        "What is left out, and counted, where a variant has a note outside 0-127, or a flip outside the encoding.",
    )
    seed: int = setting(0, "Seed of the draws, which depend on it and on the piece alone.", ge=0)

    def __post_init__(self) -> None:
        check_settings(self)
        for name, nothing in (("transpositions", "(0,)"), ("stretches", "(1.0,)"), ("velocity_shifts", "(0,)")):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} is empty; {nothing} means none")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values} names a value twice")


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """Pieces cut into windows of some bars, every one a row of its own.

    The last window of a piece is its last `bars` bars, so that no bar is lost.
    """

    bars: int = setting(0, "Bars of a window; 0: pieces stay whole.", ge=0, le=1024)
    hop_bars: int = setting(0, "Bars from one window to the next, up to `bars`; 0: `bars`.", ge=0)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.hop_bars > self.bars:
            raise ValueError(f"hop_bars={self.hop_bars} is above bars={self.bars}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParseConfig(Settings):
    """Limits on reading a file, and the size of a shard of songs."""

    read: ReadLimits = setting(ReadLimits, "Limits on a file; 0 or more.")
    seconds: float = setting(10.0, "CPU time for one batch of files, besides 2 s for each MiB of them.", gt=0)
    memory_bytes: int = setting(4 * 2**30, "Memory of one reading process.", ge=MIN_READING_BYTES)
    shard_files: int = setting(1024, "Files of a shard.", gt=0)
    shard_bytes: int = setting(8 * 2**20, "Bytes of MIDI of a shard.", gt=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """Which accepted pieces stay in a dataset; by default all of them. Every limit is itself allowed.

    Pitches, programs and shares are of pitched notes; on a piece of drums alone only the other settings decide.
    """

    min_notes: int = setting(0, "Notes, drums included.", ge=0)
    max_notes: int = setting(0, "Notes, drums included; 0: any number.", ge=0)
    min_seconds: float = setting(0.0, "End of the last note.", ge=0)
    max_seconds: float = setting(0.0, "End of the last note; 0: any length.", ge=0)
    min_notes_per_second: float = setting(0.0, "Density: all notes over the end of the last one.", ge=0)
    max_notes_per_second: float = setting(0.0, "Density; 0: any.", ge=0)
    pitch_min: int = setting(
        0, "MIDI pitch; a piece with one note outside `pitch_min` to `pitch_max` is left out.", ge=0, le=127
    )
    pitch_max: int = setting(127, "MIDI pitch.", ge=0, le=127)
    max_polyphony: int = setting(0, "Notes at one moment, drums included; 0: any number.", ge=0)
    max_mean_polyphony: float = setting(
        0.0, "Notes sounding, averaged over the time in which any does; 0: any number.", ge=0
    )
    programs_allowed: tuple[int, ...] = setting(
        (), "General MIDI programs; a piece with another one is left out. Empty: all.", each={"ge": 0, "le": 127}
    )
    programs_refused: tuple[int, ...] = setting(
        (), "General MIDI programs; a piece with one of them is left out.", each={"ge": 0, "le": 127}
    )
    drums: Literal["any", "none", "only"] = setting("any", "`none`: no drum note; `only`: nothing but drum notes.")
    time_signatures: tuple[str, ...] = setting(
        (), "Such as 4/4; a piece with another one is left out. A piece that states none is in 4/4. Empty: all."
    )
    min_distinct_pitches: int = setting(0, "Different pitches.", ge=0, le=128)
    max_share_of_one_pitch: float = setting(
        1.0, "Share of the pitched notes on the most common pitch; 1: a monotone piece too.", gt=0, le=1
    )
    max_note_seconds: float = setting(0.0, "The longest note, drums included; 0: any length.", ge=0)

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("notes", "seconds", "notes_per_second"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if 0 < high < low:
                raise ValueError(f"min_{name}={low} is above max_{name}={high}")
        if self.pitch_min > self.pitch_max:
            raise ValueError(f"pitch_min={self.pitch_min} is above pitch_max={self.pitch_max}")
        if both := sorted(set(self.programs_allowed) & set(self.programs_refused)):
            raise ValueError(f"programs {both} are in programs_allowed and in programs_refused")
        for signature in self.time_signatures:
            match = _SIGNATURE.fullmatch(signature)
            if match is None or int(match[1]) > 255:
                raise ValueError(
                    f"time_signatures: {signature!r} is not like 4/4 (1-255 over a power of two up to 128)"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig(Settings):
    """When two pieces belong to one near-duplicate group.

    They do when the share of the smaller piece's shingles that the larger one holds, estimated from 128 MinHash values,
    reaches `min_containment + small_piece_margin / sqrt(shingles of the smaller piece)`, at most 0.95: few shingles
    coincide sooner. The defaults are measured by `bench/bench_duplicates.py`.
    """

    enabled: bool = setting(True, "Off: every piece is a group of its own.")
    min_containment: float = setting(0.15, "Share of the smaller piece's shingles.", ge=0, le=1)
    small_piece_margin: float = setting(2.0, "Added to it, over the root of the number of shingles.", ge=0, le=10)
    min_equal: int = setting(18, "Equal MinHash values, of 128.", ge=1, le=128)
    reach: int = setting(
        4, "Neighbours in a bucket that each piece is compared with, beside the bucket's first.", ge=1, le=64
    )
    max_group_pieces: int = setting(
        100, "Pieces of a group; larger ones are suspected of chaining: see `group_pieces`.", ge=2, le=2**31 - 1
    )
    max_group_share: float = setting(
        0.01, "The same as a share of all pieces; the larger of the two limits holds.", ge=0, le=1
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakageConfig(Settings):
    """Where a rebuild fails: a held-out piece is leaked when one train piece holds more of it than `piece_bound`.

    Common figures are spread over many pieces; a copy is found in one. So the bound asks about the nearest train piece,
    not about train as a whole. The defaults are measured by `bench/bench_duplicates.py`.
    """

    piece_bound: float = setting(0.8, "Share of the n-grams of a piece.", ge=0, le=1)
    max_leaked_share: float = setting(
        0.001, "Share of the held-out pieces: below 1,000 of them none may leak.", ge=0, le=1
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """What becomes a dataset version. `name`, `sources` and `rehash` do not change it; everything else does."""

    sources: tuple[str, ...] = setting(
        (), "Folders, files, lists, archives, addresses, catalog names; none: the sample corpus."
    )
    name: str = setting("", "Name of the dataset; empty: made of the first source's name.")
    rehash: bool = setting(False, "Read every file again, also those whose size and times have not changed.")
    licences: tuple[str, ...] = setting((), "Accept only files whose source states one of these; empty: all.")
    source_limits: SourceLimits = setting(SourceLimits, "Limits on archives and downloads.")
    parse: ParseConfig = setting(ParseConfig, "Limits on reading.")
    filters: FilterConfig = setting(FilterConfig, "Pieces that stay.")
    groups: GroupConfig = setting(GroupConfig, "Near-duplicates.")
    near_duplicates: Literal["group", "drop"] = setting(
        "group", "Keep all pieces of a group, in one split; or one of each group."
    )
    split: Literal["official", "seeded"] = setting(
        "official", "`official`: the source's own split where it states one; `seeded`: never."
    )
    validation_share: float = setting(0.1, "Share of the near-duplicate groups.", gt=0, lt=1)
    test_share: float = setting(0.1, "Share of the near-duplicate groups.", gt=0, lt=1)
    split_seed: int = setting(0, "Seed of the split.", ge=0)
    leakage: LeakageConfig = setting(LeakageConfig, "Bounds on leakage between splits.")
    max_reject_share: float = setting(
        0.5, "A rebuild with more rejected files fails; filters and licences count too.", ge=0, le=1
    )
    encoding: Annotated[TokenizerConfig, Field(discriminator="name")] = setting(OoreConfig, "The encoding.")
    windows: WindowConfig = setting(WindowConfig, "Windows of bars.")
    augment: AugmentConfig = setting(AugmentConfig, "Augmentation of training pieces.")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.name and not NAME_PATTERN.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} is not like {NAME_PATTERN.pattern}")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share leave nothing to train on")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("sources names a source twice")
