"""Settings of a batch of pieces."""

from dataclasses import dataclass
from typing import Literal

from models.config import SamplingConfig
from models.settings import check_settings, setting

MAX_PIECES = 10_000  # of a batch, which has one page
MAX_CHAIN_BARS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """A batch of compositions. `n_workers` changes the speed, never the bytes; `batch_size` and `sampling.threads` are
    part of what the bytes depend on.
    """

    n_pieces: int = setting(8, "Pieces of the batch; make several batches for more.", ge=1, le=MAX_PIECES)
    seed: int = setting(0, "Seed of all draws.", ge=0)
    sampling: SamplingConfig = setting(SamplingConfig, "How ids are drawn.")
    prompt: str = setting(
        "",
        "Beginning to continue: a MIDI file, a folder of them, or `split:test` of the dataset; for `optimus_txt` also"
        " `text:` and characters, or a .txt file; empty: none.",
    )
    prompt_tokens: int = setting(
        128, "Tokens of the prompt, <start> included, if none of the three settings below is set.", ge=2
    )
    prompt_notes: int = setting(0, "First notes of the prompt; 0: not set.", ge=0)
    prompt_bars: int = setting(0, "Bars of the prompt, by where notes begin; 0: not set.", ge=0)
    prompt_seconds: float = setting(0.0, "Seconds of the prompt; 0: not set.", ge=0)
    infill_bars: tuple[int, int] | None = setting(
        None, "First and last bar of the prompt to rewrite; the rest is kept."
    )
    variation: float = setting(
        0.0, "Share of the prompt's bars to rewrite, drawn for each piece; for latents, how far to go.", ge=0, le=1
    )
    max_notes: int = setting(0, "Notes after which a piece ends; 0: no limit.", ge=0)
    max_bars: int = setting(0, "Bars after which a piece ends; 0: no limit.", ge=0)
    max_seconds: float = setting(0.0, "Seconds after which a piece ends, its prompt included; 0: no limit.", ge=0)
    latents: Literal["prior", "prompt", "path"] = setting(
        "prior", "Latents are drawn, are those of the prompts, or are on the way between two of them."
    )
    prompt_to: str = setting("", "End of such a path.")
    chain_bars: int = setting(
        0,
        "Bars of a long piece from a model with latents, joined of windows that begin with bars of the one before; the"
        " latents are those of the path from its beginning to its end, or of a walk. 0: a piece is one window.",
        ge=0, le=MAX_CHAIN_BARS,
    )  # fmt: skip
    chain_hop_bars: int = setting(0, "Bars from the beginning of a window to the next one's; 0: half a window.", ge=0)
    chain_step: float = setting(
        0.2, "Share of the way from a window's latent to a drawn one at which the next one's is.", ge=0, le=1
    )
    key: str = setting("", "Such as `C` or `F# minor`: notes outside of it are drawn almost never.")
    programs: tuple[int, ...] = setting(
        (), "General MIDI programs: others are drawn almost never.", each={"ge": 0, "le": 127}
    )
    tempo: float = setting(0.0, "Beats a minute, for encodings that write it: the nearest one that they have.", ge=0)
    density: float = setting(0.0, "Added to the logits of notes; above 0 is denser, below 0 thinner.")
    n_tracks: int = setting(
        0, "Tracks of a piece, for encodings that write one after the other; 0: as the model decides.", ge=0
    )
    max_note_seconds: float = setting(
        0.0, "A note that still sounds after this time ends next; 0: as the model decides.", ge=0
    )
    best_of: int = setting(1, "Attempts at each piece, of which one is kept.", ge=1, le=1000)
    best_by: Literal["typicality", "originality", "join"] = setting(
        "typicality", "Score of the kept attempt; `join` is of rewritten bars."
    )
    reject_copies: bool = setting(
        False, "Rewrite a piece that shares a longer run with the training split than people's pieces do."
    )
    batch_size: int = setting(
        8, "Pieces of a unit of work, sampled side by side; another number makes another batch.", ge=1
    )
    n_workers: int = setting(
        1, "Processes that sample units, no more than there are; 0: one for each `sampling.threads` cores.", ge=0
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto",
        "Kind of device, which the bytes depend on; auto: a GPU where the Ray cluster, or without one this machine, has"
        " one.",
    )
    gpus_per_worker: float = setting(1.0, "GPUs of a process on Ray; below 1, several share one.", gt=0, le=1)
    audio: Literal["ogg", "mp3", "flac", "wav", "none"] = setting(
        "ogg",
        "Sound of each piece. MP3 takes four times as long; browsers before 2024 may need it. FLAC and WAV are lossless"
        " and large.",
    )
    renderer: Literal["midirenderer", "fluidsynth"] = setting(
        "midirenderer", "What makes the sound; FluidSynth is a program of the system."
    )
    soundfont: str = setting(
        "", "An SF2 file, for FluidSynth also SF3; empty: TimGM6mb.sf2 of the package pretty_midi."
    )
    musicxml: bool = setting(False, "Write a score for notation programs too.")

    def __post_init__(self) -> None:
        check_settings(self)
        parts = [name for name in ("prompt_notes", "prompt_bars", "prompt_seconds") if getattr(self, name)]
        if len(parts) > 1:
            raise ValueError(f"{' and '.join(parts)} both say how much of a prompt is taken; set one")
        self._check_new_bars()
        self._check_chain()
        takes_tokens = self.prompt and self.latents == "prior" and not (parts or self.infill_bars or self.variation)
        if takes_tokens and self.prompt_tokens >= self.sampling.max_tokens:
            raise ValueError(
                f"prompt_tokens={self.prompt_tokens} leaves no room below"
                f" sampling.max_tokens={self.sampling.max_tokens}"
            )
        if self.prompt_to and self.latents != "path":
            raise ValueError(f"prompt_to={self.prompt_to!r} is the end of a path, but latents={self.latents!r}")

    @property
    def n_tries(self) -> int:
        """Attempts at each gap of a variation, of which the best one is kept before the next gap is filled."""
        return self.best_of if self.variation and self.best_by == "join" else 1

    @property
    def unit_size(self) -> int:
        """Pieces that are sampled side by side, and whose bytes depend on each other."""
        return 1 if self.chain_bars or self.sampling.beams else self.batch_size

    def _check_chain(self) -> None:
        if not self.chain_bars:
            if self.chain_hop_bars:
                raise ValueError(f"chain_hop_bars={self.chain_hop_bars} is of a chain, but chain_bars=0")
            return
        control = f"chain_bars={self.chain_bars}"
        if limits := [name for name in ("max_notes", "max_bars", "max_seconds") if getattr(self, name)]:
            raise ValueError(f"{' and '.join(limits)} and {control} both say how long a piece is; set one")
        if self.infill_bars or self.sampling.beams:
            other = "infill_bars" if self.infill_bars else "sampling.beams"
            raise ValueError(f"{other} and {control} do not go together: windows of a chain are drawn one by one")
        if self.prompt and self.latents == "prior" and not self.variation:
            raise ValueError(f"{control} continues no prompt; set latents=prompt to begin with the prompt's latent")

    def _check_new_bars(self) -> None:
        if self.infill_bars is None and not self.variation:
            if self.best_by == "join":
                raise ValueError("best_by='join' is of bars written anew, but neither infill_bars nor variation is set")
            return
        control = f"variation={self.variation}"
        if self.infill_bars is not None:
            if self.variation:
                raise ValueError("infill_bars and variation both say which bars are written anew; set one")
            control = f"infill_bars={list(self.infill_bars)}"
            if not 1 <= self.infill_bars[0] <= self.infill_bars[1]:
                raise ValueError(f"{control}: the first bar is 1, and the last no earlier")
        if not self.prompt:
            raise ValueError(f"{control} is of a prompt, and there is none")
        if self.variation and self.latents == "path":
            raise ValueError(f"{control} is of one prompt, but latents='path' goes between two")
        others = ["prompt_notes", "prompt_bars", "prompt_seconds"]
        others += [] if self.variation else ["max_notes", "max_bars", "max_seconds"]  # see `check_request` of these
        if given := [name for name in others if getattr(self, name)]:
            raise ValueError(f"{' and '.join(given)} and {control} both say where a piece is cut; set one")
