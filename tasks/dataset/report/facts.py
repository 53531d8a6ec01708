"""The content of a dataset's report as dataclasses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.dataset.ledger import STATES

Counts = Mapping[str, int]
Ranking = Sequence[tuple[str, int]]  # path and number, largest first


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFacts:
    """Where files came from; an empty text or 0 is left out."""

    address: str
    licence: str = ""
    n_files: int = 0
    n_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasonFacts:
    """One reason for a state, such as `not_midi` for `rejected`; examples are pairs of path and detail."""

    state: str
    reason: str
    n_files: int
    examples: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateFacts:
    """Groups of two files or more; `sizes` counts groups by their number of files, `largest` names files of some."""

    n_groups: int = 0
    n_files: int = 0  # in these groups
    sizes: Mapping[int, int] = field(default_factory=dict)
    largest: Sequence[tuple[int, Sequence[str]]] = ()  # number of files, and paths of some


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFacts:
    """One split: pieces and groups as they are, rows and tokens after augmentation and encoding."""

    name: str
    n_pieces: int
    n_groups: int
    n_notes: int
    hours: float
    n_rows: int = 0
    n_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeFacts:
    """What is new since the version `previous`; examples are pairs of `added`, `removed` or `changed` and a path."""

    previous: str
    n_added: int
    n_removed: int
    n_changed: int
    n_unchanged: int
    n_moved_pieces: int = 0  # in another split than before
    shards: Mapping[str, Counts] = field(default_factory=dict)  # of each stage: new, kept, gone
    settings: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # name -> value before and now
    examples: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleFacts:
    """A piece to draw: columns of its notes and pedal spans, times in seconds."""

    split: str
    path: str
    onset_seconds: Sequence[float]
    end_seconds: Sequence[float]
    pitch: Sequence[int]
    velocity: Sequence[int]
    program: Sequence[int]
    is_drum: Sequence[bool]
    track: Sequence[int]
    pedal_onset_seconds: Sequence[float] = ()
    pedal_end_seconds: Sequence[float] = ()
    pedal_track: Sequence[int] = ()

    @classmethod
    def from_song(cls, song: Mapping[str, Any], split: str, path: str) -> "SampleFacts":
        names = ("onset_seconds", "pitch", "velocity", "program", "is_drum", "track")
        columns = {name: list(song[name]) for name in (*names, "pedal_onset_seconds", "pedal_track")}
        for kind in ("", "pedal_"):
            spans = zip(columns[f"{kind}onset_seconds"], song[f"{kind}duration_seconds"], strict=True)
            columns[f"{kind}end_seconds"] = [onset + duration for onset, duration in spans]
        return cls(split=split, path=path, **columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFacts:
    """The facts of a report as plain values, so that `dataclasses.asdict` gives JSON.

    Args:
        n_files: files found, in any state.
        states: files by state; their sum should be `n_files`, and the page says so where it is not.
        n_notes_in: notes in all files that could be read; less the dropped ones they should be `n_notes_out`.
        notes_dropped: by reason.
        histograms: counts as from `music.features.histograms` and, as `tempo`, from `tempo_histogram`; those that
            are missing are not shown.
        ticks_per_quarter: pieces by resolution.
        exact: groups of files with the same content.
        near: groups of accepted pieces that are nearly the same.
        leakage: any figures by name. `headline` is a sentence, lists of mappings become tables, a false
            `within_bound` becomes a warning.
        slowest: files with the microseconds that reading them took.
        largest: files with their bytes.
        losses: what readers left out or repaired in accepted files, by reason.
        n_other_files: files in the sources whose names say that they are not MIDI.
        settings: what the version was built with, by name.
        warnings: sentences shown at the top.
    """

    name: str
    version: str
    n_files: int
    states: Counts
    sources: Sequence[SourceFacts] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    reasons: Sequence[ReasonFacts] = ()
    n_notes_in: int = 0
    n_notes_out: int = 0
    notes_dropped: Counts = field(default_factory=dict)
    losses: Counts = field(default_factory=dict)
    n_other_files: int = 0
    histograms: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ticks_per_quarter: Mapping[int, int] = field(default_factory=dict)
    exact: DuplicateFacts = DuplicateFacts()
    near: DuplicateFacts = DuplicateFacts()
    splits: Sequence[SplitFacts] = ()
    leakage: Mapping[str, Any] = field(default_factory=dict)
    slowest: Ranking = ()
    largest: Ranking = ()
    changes: ChangeFacts | None = None
    samples: Sequence[SampleFacts] = ()
    warnings: Sequence[str] = ()

    @property
    def hours(self) -> float:
        return sum(split.hours for split in self.splits)

    def state_counts(self) -> list[tuple[str, int]]:
        """Return the files in each state, the three known ones first."""
        others = sorted(set(self.states) - set(STATES))
        return [(state, self.states.get(state, 0)) for state in (*STATES, *others)]

    def headline(self) -> dict[str, str]:
        figures = {"files found": self.n_files, **dict(self.state_counts()), "notes kept": self.n_notes_out}
        shown = {name: f"{n:,}" for name, n in figures.items()}
        if self.splits:
            shown["hours of music"] = f"{self.hours:,.1f}"
        if n_tokens := sum(split.n_tokens for split in self.splits):
            shown["tokens"] = f"{n_tokens:,}"
        return shown

    def problems(self) -> list[str]:
        """Return the sums that do not come out, as sentences; there should be none."""
        found = list(self.warnings)
        n_counted = sum(self.states.values())
        if n_counted != self.n_files:
            found.append(f"{self.n_files:,} files were found, but {n_counted:,} have a state.")
        n_explained = self.n_notes_out + sum(self.notes_dropped.values())
        if n_explained != self.n_notes_in:
            found.append(f"{self.n_notes_in:,} notes were found, but {n_explained:,} are kept or counted as dropped.")
        if self.leakage.get("within_bound") is False:
            found.append("Leakage between the splits is above its bound.")
        return found
