"""One frozen dataclass per stage, and the whole run as one object; importable without torch, ray, prefect or mlflow."""

import dataclasses
import functools
import hashlib
import json
import math
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from models.config import (
    DecoderConfig,
    ModelConfig,
    NoamSchedule,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    VaeConfig,
)
from tasks.errors import ConfigError
from tasks.filters import FilterConfig
from tasks.groups import GroupConfig
from tasks.leakage import LeakageConfig
from tasks.music.midi.limits import ReadLimits
from tasks.music.tokenizers.oore import OoreConfig
from tasks.music.tokenizers.registry import TokenizerConfig
from tasks.sources.limits import SourceLimits
from tasks.storage.foreign_text import OutOfBounds, parse_json

Config = TypeVar("Config")

LARGEST_FLOAT = 3.4e38  # of 32 bits, in which models compute
MIN_READING_BYTES = 2**26
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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
        _require(len(self.transpositions) > 0, "transpositions is empty; (0,) means none")
        _require(len(self.stretches) > 0, "stretches is empty; (1.0,) means none")
        _require(
            all(abs(t) <= 48 for t in self.transpositions), f"transpositions={self.transpositions} outside -48 to 48"
        )
        _require(all(0.1 <= s <= 10 for s in self.stretches), f"stretches={self.stretches} outside 0.1 to 10")
        _require(len(self.velocity_shifts) > 0, "velocity_shifts is empty; (0,) means none")
        _require(
            all(abs(v) <= 64 for v in self.velocity_shifts), f"velocity_shifts={self.velocity_shifts} outside -64 to 64"
        )
        _require(0 <= self.n_sampled <= 1000, f"n_sampled={self.n_sampled} outside 0 to 1000")
        for name in ("change_probability", "swap_probability", "drop_probability"):
            _require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} outside 0 to 1")
        _require(self.seed >= 0, f"seed={self.seed} is below 0")
        for name in ("transpositions", "stretches", "velocity_shifts"):
            values = getattr(self, name)
            _require(len(set(values)) == len(values), f"{name}={values} names a value twice")


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """Pieces cut into windows of some bars each, every one a row of its own; 0 bars: pieces stay whole.

    The last window of a piece is its last `bars` bars, so that no bar is lost.
    """

    bars: int = 0
    hop_bars: int = 0  # from one window to the next; 0: as many as a window has

    def __post_init__(self) -> None:
        _require(0 <= self.bars <= 1024, f"bars={self.bars} outside 0 to 1024")
        _require(0 <= self.hop_bars <= self.bars, f"hop_bars={self.hop_bars} outside 0 to bars={self.bars}")


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
            _require(getattr(self, name) > 0, f"{name}={getattr(self, name)} is not above 0")
        _require(
            self.memory_bytes >= MIN_READING_BYTES,
            f"memory_bytes={self.memory_bytes} is below {MIN_READING_BYTES}, with which nothing can be read",
        )


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
        _require(
            not self.name or bool(NAME_PATTERN.fullmatch(self.name)),
            f"name={self.name!r} is not like {NAME_PATTERN.pattern}",
        )
        _require(self.split_seed >= 0, f"split_seed={self.split_seed} is below 0")
        for name in ("validation_share", "test_share"):
            _require(0 < getattr(self, name) < 1, f"{name}={getattr(self, name)} outside 0 to 1")
        _require(self.validation_share + self.test_share < 1, "validation_share + test_share leave nothing to train on")
        _require(0 <= self.max_reject_share <= 1, f"max_reject_share={self.max_reject_share} outside 0 to 1")
        _require(len(set(self.sources)) == len(self.sources), f"sources={self.sources} names a source twice")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run; together with the dataset version it determines the weights."""

    preset: str = "music_transformer"  # label for runs and registered models
    model: Annotated[ModelConfig, Field(discriminator="name")] = field(default_factory=DecoderConfig)
    schedule: Annotated[ScheduleConfig, Field(discriminator="name")] = field(default_factory=NoamSchedule)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    n_steps: int = 20_000
    batch_size: int = 32  # windows in the global batch, whatever n_workers is
    window_tokens: int = 1024
    windows: Literal["random", "whole", "start", "end", "packed"] = "random"  # how they are taken from rows of tokens
    seed: int = 0
    bf16: bool = False
    compiled: bool = False  # by torch.compile, which needs a C++ compiler on the machine
    n_parts: int = 1  # of a worker's share of a batch, one after the other; gradients add up, memory does not
    n_workers: int = 1  # Ray Train workers; gloo on CPU, NCCL on GPU
    cpus_per_worker: int = 0  # 0: the machine's cores shared among the workers
    validation_windows: int = 64
    evaluate_every: int = 500  # steps
    checkpoint_every: int = 500
    log_every: int = 10
    keep_periodic: int = 0  # periodic checkpoints kept beside best and last
    max_failures: int = 2  # worker losses survived by going on from the last checkpoint

    def __post_init__(self) -> None:
        for name in (
            "n_steps",
            "batch_size",
            "n_parts",
            "n_workers",
            "validation_windows",
            "evaluate_every",
            "checkpoint_every",
            "log_every",
        ):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} is below 1")
        for name in ("seed", "cpus_per_worker", "keep_periodic", "max_failures"):
            _require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} is below 0")
        if isinstance(self.model, VaeConfig):
            _require(
                self.window_tokens == self.model.block,
                f"window_tokens={self.window_tokens}, but model.block={self.model.block}: latents are of whole blocks",
            )
            _require(
                self.model.kl_reduction != "sum" or self.n_workers == self.n_parts == 1,
                "model.kl_reduction='sum' is over a whole batch: it needs n_workers=1 and n_parts=1",
            )
        if isinstance(self.model, DecoderConfig) and self.model.absolute_positions == "learned":
            _require(
                self.window_tokens <= self.model.max_positions,
                f"window_tokens={self.window_tokens} is above model.max_positions={self.model.max_positions}",
            )
        _require(8 <= self.window_tokens <= 2**20, f"window_tokens={self.window_tokens} is outside 8 to {2**20}")
        _require(
            self.batch_size % self.n_workers == 0,
            f"batch_size={self.batch_size} is not a multiple of n_workers={self.n_workers}",
        )
        _require(
            self.n_parts <= self.batch_size // self.n_workers,
            f"n_parts={self.n_parts} is above the {self.batch_size // self.n_workers} windows of one worker",
        )


# Settings of a training run that are not part of what it is: they change neither its numbers nor its name.
# But for the draws of dropout and latents, which belong to a worker's rank.
TRAIN_WITHOUT_EFFECT = ("n_workers", "cpus_per_worker", "max_failures", "keep_periodic", "log_every")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Scores of a model on a split, held out as a rule, and its free samples against that music."""

    split: Literal["train", "validation", "test"] = "test"  # on `train` it shows what was memorised; never a champion
    window_tokens: int = 1024
    batch_size: int = 8  # windows at once
    n_samples: int = 8  # pieces sampled without the grammar, for the grammar error rate and the statistics
    sample_tokens: int = 512  # of a sample, and behind the prompt of a continuation, at most
    n_continuations: int = 8  # pieces of the split whose beginning is gone on from, under the grammar; 0: none
    prompt_tokens: int = 64  # of such a beginning, <start> included
    seed: int = 0
    promote: bool = True  # give the alias `champion` to the model if it beats the present one on this dataset version
    promote_by: Literal["interval", "figure"] = "interval"  # beyond noise: the 95 % interval; or by any difference

    def __post_init__(self) -> None:
        _require(self.window_tokens >= 8, f"window_tokens={self.window_tokens} is below 8")
        _require(self.batch_size >= 1, f"batch_size={self.batch_size} is below 1")
        _require(self.n_samples >= 0, f"n_samples={self.n_samples} is below 0")
        _require(self.sample_tokens >= 8, f"sample_tokens={self.sample_tokens} is below 8")
        _require(self.n_continuations >= 0, f"n_continuations={self.n_continuations} is below 0")
        _require(self.prompt_tokens >= 2, f"prompt_tokens={self.prompt_tokens} is below 2")
        _require(self.seed >= 0, f"seed={self.seed} is below 0")


MAX_PIECES = 10_000  # of a batch, which has one page


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """A batch of compositions. `batch_size` and `n_workers` change the speed, never the bytes."""

    n_pieces: int = 8
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompt: str = ""  # to continue: a MIDI file, a folder of them, or `split:test` of the dataset; empty: nothing
    prompt_tokens: int = 128  # of the prompt's encoding, <start> included; how much of it is taken, if not said below
    prompt_notes: int = 0  # its first notes,
    prompt_bars: int = 0  # the notes that begin in its first bars
    prompt_seconds: float = 0.0  # or in its first seconds; 0: not so
    infill_bars: tuple[int, int] | None = None  # first and last bar of the prompt to write anew, the rest is kept
    variation: float = 0.0  # share of the prompt's bars, drawn for each piece, to write anew; of latents, how far to go
    max_notes: int = 0  # a piece ends after so many notes,
    max_bars: int = 0  # with its last bar
    max_seconds: float = 0.0  # or after so long, its prompt included; 0: only by its tokens
    latents: Literal["prior", "prompt", "path"] = "prior"  # drawn, of the prompts, or on the way between two of them
    prompt_to: str = ""  # where such a path ends
    key: str = ""  # such as `C`, `F# minor`: notes outside of it are all but never drawn
    programs: tuple[int, ...] = ()  # General MIDI, 0-127: others are all but never drawn
    tempo: float = 0.0  # beats a minute, for encodings that write it: the nearest one that they have
    density: float = 0.0  # added to the logits of notes; above 0 is denser, below 0 thinner
    n_tracks: int = 0  # of a piece, for encodings that write one after the other; 0: as many as the model likes
    max_note_seconds: float = 0.0  # a note still sounding after so long must end next; 0: as long as the model likes
    best_of: int = 1  # attempts at each piece, of which one is kept
    best_by: Literal["typicality", "originality", "join"] = "typicality"  # see `tasks.critic`; `join`: of new bars
    reject_copies: bool = False  # write a piece anew that shares a longer run with train than people's pieces do
    batch_size: int = 8
    n_workers: int = 1
    audio: Literal["ogg", "mp3", "none"] = "ogg"  # an MP3 takes four times as long; browsers before 2024 may need it
    soundfont: str = ""  # an SF2 or SF3 file, or `none` for the built-in sounds; empty: one that is found
    musicxml: bool = False  # write a score for notation programs too

    def __post_init__(self) -> None:
        for name in ("n_pieces", "batch_size", "n_workers"):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} is below 1")
        _require(1 <= self.best_of <= 1000, f"best_of={self.best_of} is outside 1-1000")
        _require(self.n_pieces <= MAX_PIECES, f"n_pieces={self.n_pieces} is above {MAX_PIECES}; make several batches")
        _require(self.seed >= 0, f"seed={self.seed} is below 0")
        _require(self.n_tracks >= 0, f"n_tracks={self.n_tracks} is below 0")
        _require(self.max_note_seconds >= 0, f"max_note_seconds={self.max_note_seconds} is below 0")
        _require(self.prompt_tokens >= 2, f"prompt_tokens={self.prompt_tokens} is below 2")
        for name in ("prompt_notes", "prompt_bars", "prompt_seconds", "max_notes", "max_bars", "max_seconds"):
            _require(0 <= getattr(self, name) < math.inf, f"{name}={getattr(self, name)} is not a number from 0 on")
        self._check_new_bars()
        for program in self.programs:
            _require(0 <= program <= 127, f"programs: {program} is outside 0-127")
        _require(self.tempo >= 0, f"tempo={self.tempo} is below 0")
        _require(math.isfinite(self.density), f"density={self.density} is no finite number")
        parts = [name for name in ("prompt_notes", "prompt_bars", "prompt_seconds") if getattr(self, name)]
        _require(len(parts) <= 1, f"{' and '.join(parts)} both say how much of a prompt is taken; set one")
        takes_tokens = self.prompt and self.latents == "prior" and not (parts or self.infill_bars or self.variation)
        _require(
            not takes_tokens or self.prompt_tokens < self.sampling.max_tokens,
            f"prompt_tokens={self.prompt_tokens} leaves no room below sampling.max_tokens={self.sampling.max_tokens}",
        )
        _require(
            not self.prompt_to or self.latents == "path",
            f"prompt_to={self.prompt_to!r} is the end of a path, but latents={self.latents!r}",
        )

    @property
    def n_tries(self) -> int:
        """Attempts at each gap of a variation, of which the best one is kept before the next gap is filled."""
        return self.best_of if self.variation and self.best_by == "join" else 1

    def _check_new_bars(self) -> None:
        _require(0 <= self.variation <= 1, f"variation={self.variation} is outside 0-1")
        _require(
            self.best_by != "join" or self.infill_bars is not None or self.variation > 0,
            "best_by='join' is of bars written anew, but neither infill_bars nor variation is set",
        )
        if self.infill_bars is None and not self.variation:
            return
        wish = f"variation={self.variation}"
        if self.infill_bars is not None:
            _require(not self.variation, "infill_bars and variation both say which bars are written anew; set one")
            first, last = self.infill_bars
            wish = f"infill_bars={list(self.infill_bars)}"
            _require(1 <= first <= last, f"{wish}: the first bar is 1, and the last no earlier")
        _require(bool(self.prompt), f"{wish} is of a prompt, and there is none")
        is_path = bool(self.variation) and self.latents == "path"
        _require(not is_path, f"{wish} is of one prompt, but latents='path' goes between two")
        others = ["prompt_notes", "prompt_bars", "prompt_seconds"]
        others += [] if self.variation else ["max_notes", "max_bars", "max_seconds"]  # see `check_request` of these
        given = [name for name in others if getattr(self, name)]
        _require(not given, f"{' and '.join(given)} and {wish} both say where a piece is cut; set one")


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """The whole run: rebuild, train, evaluate, generate."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)


def to_json(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values; `from_json` is the inverse."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def from_json(kind: type[Config], values: Any, place: str = "") -> Config:
    """Build a config of `kind` from JSON values.

    Raises:
        ConfigError: an unknown key, a wrong type or an impossible value; the message names the field's path.
    """
    try:
        config = _validator(kind).model_validate({"value": values}).value  # type: ignore[attr-defined]
    except ValidationError as error:
        raise ConfigError("; ".join(_say(problem, kind, place) for problem in error.errors()[:3])) from None
    if wrong := _wrong_number(config, values):
        path, said = wrong
        raise ConfigError(f"{place}: {path}: {said}" if place else f"{path}: {said}")
    return config


def check_numbers(config: Any) -> None:
    """See that all numbers of a config are finite and of a size that is computed with, however it was made.

    Raises:
        ConfigError: one is not; the message names the field's path.
    """
    if wrong := _wrong_number(config, None):
        raise ConfigError(": ".join(wrong))


def _wrong_number(value: Any, given: Any, path: str = "") -> tuple[str, str] | None:
    """Return the path of the first number that no setting takes, and what is wrong with it.

    Args:
        given: what `value` was made of, if known: true and false are not 1 and 0.
    """
    if dataclasses.is_dataclass(value):
        names = [entry.name for entry in dataclasses.fields(value)]
        known = given if isinstance(given, dict) else {}
        inner = [(getattr(value, name), known.get(name), f"{path}.{name}" if path else name) for name in names]
    elif isinstance(value, (tuple, list)):
        known = given if isinstance(given, (tuple, list)) else [None] * len(value)
        inner = [(item, one, path) for item, one in zip(value, known, strict=False)]
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    else:
        if isinstance(given, bool):
            return path, f"a number is wanted, not {str(given).lower()}"
        if isinstance(value, int):
            return (
                None if -(2**63) <= value < 2**63 else (path, f"{shortened(str(value))} is beyond 64 bits with a sign")
            )
        is_usable = math.isfinite(value) and abs(value) <= LARGEST_FLOAT
        return None if is_usable else (path, f"{value} is not a finite number that 32 bits hold")
    return next(filter(None, (_wrong_number(*one) for one in inner)), None)


def digest(value: Any) -> str:
    """Return the SHA-256 hex digest of a config's or JSON value's canonical form."""
    plain = to_json(value) if dataclasses.is_dataclass(value) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return `config` with `a.b=value` overrides applied; a value is JSON where it parses as JSON, else text.

    Raises:
        ConfigError: an override without `=`, an unknown key (the message lists the known ones) or a bad value.
    """
    values = to_json(config)
    for override in _variants_first(overrides):
        path, equals, text = override.partition("=")
        shown = f"--set {shortened(override)}"
        if not equals:
            raise ConfigError(f"{shown}: write it as key=value, for example train.n_steps=500")
        keys = path.strip().split(".")
        section = _section_of(values, keys, shown)
        try:
            section[keys[-1]] = parse_value(text)
        except OutOfBounds as error:
            raise ConfigError(f"{shown}: {error}") from None
        if _VARIANT_NAME.match(override):
            values = _switch_variant(type(config), values, section)
    return from_json(type(config), values)


def field_paths(kind: type, prefix: str = "") -> list[str]:
    """Return the dotted path of every setting below a config class, in order of definition."""
    paths: list[str] = []
    for entry in dataclasses.fields(kind):
        hint = typing.get_type_hints(kind)[entry.name]
        members = [m for m in (typing.get_args(hint) or (hint,)) if dataclasses.is_dataclass(m)]
        if members:
            nested = [path for member in members for path in field_paths(member, f"{prefix}{entry.name}.")]  # type: ignore[arg-type]
            paths += dict.fromkeys(nested)
        else:
            paths.append(prefix + entry.name)
    return paths


def parse_value(text: str) -> Any:
    """Return what a setting's text means: JSON where it parses as JSON, otherwise the text.

    Raises:
        OutOfBounds: JSON that is nested too deeply, or holds a whole number beyond 64 bits.
    """
    try:
        return parse_json(text)
    except OutOfBounds:
        raise
    except ValueError:
        return text


def shortened(text: str) -> str:
    """Return a text as a message holds it, however long it is."""
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _section_of(values: dict[str, Any], keys: list[str], shown: str) -> dict[str, Any]:
    section: Any = values
    for depth, key in enumerate(keys):
        if not isinstance(section, dict) or key not in section:
            known = ", ".join(section) if isinstance(section, dict) else "nothing below it"
            raise ConfigError(f"{shown}: unknown key {shortened('.'.join(keys[: depth + 1]))!r}; known here: {known}")
        if depth < len(keys) - 1:
            section = section[key]
    return section


_VARIANT_NAME = re.compile(r"\s*([^=]*\.)?(model|schedule|encoding)\.name\s*=")  # says which member of a union is meant


def _variants_first(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that choose a variant, then the others, which a change of variant must not take away."""
    return sorted(overrides, key=lambda override: not _VARIANT_NAME.match(override))


def _switch_variant(kind: type, values: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    """Complete a section whose `name` was set: where the old fields do not fit the new variant, its defaults do."""
    try:
        return to_json(from_json(kind, values))
    except ConfigError:
        name = section["name"]
        section.clear()
        section["name"] = name
        return to_json(from_json(kind, values))


# Names that tell the members of a union apart; they stand in the place of a problem and are no keys.
_VARIANTS = {
    field.default
    for union in (ModelConfig, ScheduleConfig, TokenizerConfig)
    for member in typing.get_args(union)
    for field in dataclasses.fields(member)
    if field.name == "name"
}


@functools.cache
def _validator(kind: type) -> type[BaseModel]:
    # Plain dataclasses take their strictness from the model they stand in; on their own they ignore unknown keys.
    return create_model("Config", __config__=ConfigDict(extra="forbid"), value=(kind, ...))


def _say(problem: Any, kind: type, place: str) -> str:
    location = [str(part) for part in problem["loc"][1:]]
    path = ".".join(part for part in location if not part.endswith(("Config", "Schedule")) and part not in _VARIANTS)
    where = f"{place}: " if place else ""
    if problem["type"] == "unexpected_keyword_argument":
        known = [p for p in field_paths(kind) if p.rpartition(".")[0] == path.rpartition(".")[0]]
        return (
            f"{where}unknown key {shortened(repr(path))}; known here: {', '.join(p.rpartition('.')[2] for p in known)}"
        )
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (got {shortened(repr(given))})" if not isinstance(given, dict) else ""
    return f"{where}{shortened(path) or kind.__name__}: {message}{shown}"
