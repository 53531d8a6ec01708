"""Settings of a batch of pieces."""

import math
from dataclasses import dataclass, field
from typing import Literal

from models.config import (
    SamplingConfig,
)
from tasks.config.checks import require

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
    best_by: Literal["typicality", "originality", "join"] = (
        "typicality"  # see `tasks.generation.judge`; `join`: of new bars
    )
    reject_copies: bool = False  # write a piece anew that shares a longer run with train than people's pieces do
    batch_size: int = 8
    n_workers: int = 1
    audio: Literal["ogg", "mp3", "none"] = "ogg"  # an MP3 takes four times as long; browsers before 2024 may need it
    renderer: Literal["midirenderer", "fluidsynth"] = "midirenderer"  # FluidSynth is a program of the system
    soundfont: str = ""  # an SF2 file, for FluidSynth also SF3; empty: TimGM6mb.sf2 of the package pretty_midi
    musicxml: bool = False  # write a score for notation programs too

    def __post_init__(self) -> None:
        for name in ("n_pieces", "batch_size", "n_workers"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} is below 1")
        require(1 <= self.best_of <= 1000, f"best_of={self.best_of} is outside 1-1000")
        require(self.n_pieces <= MAX_PIECES, f"n_pieces={self.n_pieces} is above {MAX_PIECES}; make several batches")
        require(self.seed >= 0, f"seed={self.seed} is below 0")
        require(self.n_tracks >= 0, f"n_tracks={self.n_tracks} is below 0")
        require(self.max_note_seconds >= 0, f"max_note_seconds={self.max_note_seconds} is below 0")
        require(self.prompt_tokens >= 2, f"prompt_tokens={self.prompt_tokens} is below 2")
        for name in ("prompt_notes", "prompt_bars", "prompt_seconds", "max_notes", "max_bars", "max_seconds"):
            require(0 <= getattr(self, name) < math.inf, f"{name}={getattr(self, name)} is not a number from 0 on")
        self._check_new_bars()
        for program in self.programs:
            require(0 <= program <= 127, f"programs: {program} is outside 0-127")
        require(self.tempo >= 0, f"tempo={self.tempo} is below 0")
        require(math.isfinite(self.density), f"density={self.density} is no finite number")
        parts = [name for name in ("prompt_notes", "prompt_bars", "prompt_seconds") if getattr(self, name)]
        require(len(parts) <= 1, f"{' and '.join(parts)} both say how much of a prompt is taken; set one")
        takes_tokens = self.prompt and self.latents == "prior" and not (parts or self.infill_bars or self.variation)
        require(
            not takes_tokens or self.prompt_tokens < self.sampling.max_tokens,
            f"prompt_tokens={self.prompt_tokens} leaves no room below sampling.max_tokens={self.sampling.max_tokens}",
        )
        require(
            not self.prompt_to or self.latents == "path",
            f"prompt_to={self.prompt_to!r} is the end of a path, but latents={self.latents!r}",
        )

    @property
    def n_tries(self) -> int:
        """Attempts at each gap of a variation, of which the best one is kept before the next gap is filled."""
        return self.best_of if self.variation and self.best_by == "join" else 1

    def _check_new_bars(self) -> None:
        require(0 <= self.variation <= 1, f"variation={self.variation} is outside 0-1")
        require(
            self.best_by != "join" or self.infill_bars is not None or self.variation > 0,
            "best_by='join' is of bars written anew, but neither infill_bars nor variation is set",
        )
        if self.infill_bars is None and not self.variation:
            return
        wish = f"variation={self.variation}"
        if self.infill_bars is not None:
            require(not self.variation, "infill_bars and variation both say which bars are written anew; set one")
            first, last = self.infill_bars
            wish = f"infill_bars={list(self.infill_bars)}"
            require(1 <= first <= last, f"{wish}: the first bar is 1, and the last no earlier")
        require(bool(self.prompt), f"{wish} is of a prompt, and there is none")
        is_path = bool(self.variation) and self.latents == "path"
        require(not is_path, f"{wish} is of one prompt, but latents='path' goes between two")
        others = ["prompt_notes", "prompt_bars", "prompt_seconds"]
        others += [] if self.variation else ["max_notes", "max_bars", "max_seconds"]  # see `check_request` of these
        given = [name for name in others if getattr(self, name)]
        require(not given, f"{' and '.join(given)} and {wish} both say where a piece is cut; set one")
