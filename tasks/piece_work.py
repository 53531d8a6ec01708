"""The work on single pieces of a batch, for any worker: sample some and write them down, then draw and render them.

A piece is first a candidate: its MIDI file, and beside it, written last, what is known of it. So whatever ends a
worker, the candidates with both files are finished, and whoever comes next goes on with the others.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from torch import Tensor

from tasks.checkpoints import LoadedModel, load_model
from tasks.config import GenerateConfig, to_json
from tasks.copying import CopyIndex
from tasks.home import json_bytes, read_json, write_atomically
from tasks.infill import Gap, join_nats
from tasks.latent_pieces import LatentPlan, note_f1
from tasks.music.excerpt import beginning
from tasks.music.metrics import piece_statistics
from tasks.music.midi_statistics import midi_statistics
from tasks.music.musicxml import write_musicxml
from tasks.music.pianoroll import draw_piano_roll, part_labels
from tasks.music.retrigger import end_at_next
from tasks.music.score import Score, build_score, read_midi, write_midi
from tasks.music.soundfont import Player
from tasks.music.synth import encode_audio
from tasks.music.tokenizers.mmm import MmmTokenizer
from tasks.music.validity import check_validity
from tasks.piece_ids import WrittenIds, write_ids
from tasks.prompts import Prompt, piece_limit

_COLUMNS: tuple[str, ...] = ("onset", "duration", "pitch", "velocity", "program", "is_drum", "track")
DRAWING = Lock()  # matplotlib is not made for several threads
EMPTY_SCORE = build_score(480, {name: np.zeros(0, np.int64) for name in _COLUMNS})  # no file without notes is read


@dataclass(frozen=True, slots=True)
class Candidate:
    """Which piece of a batch, and the how manieth attempt at it."""

    index: int
    attempt: int = 0

    @property
    def name(self) -> str:
        return f"{self.index:04d}"

    def path(self, folder: Path, suffix: str) -> Path:
        return folder / "candidates" / f"{self.index:04d}-{self.attempt}.{suffix}"


@dataclass(frozen=True, slots=True)
class WriteJob:
    """Candidates to sample; a worker needs nothing else."""

    checkpoint: Path
    candidates: tuple[Candidate, ...]
    prompts: tuple[Prompt, ...]  # one for each candidate
    latents: LatentPlan
    config: GenerateConfig
    lineage: dict[str, str]
    folder: Path  # of the unfinished batch
    dataset_folder: Path | None  # of the version with the index of copies


@dataclass(frozen=True, slots=True)
class RenderJob:
    """Chosen candidates of which pieces are made; a worker needs nothing else."""

    chosen: tuple[Candidate, ...]
    facts: tuple[dict[str, Any], ...]  # what the sidecar of each says beyond what is known of the candidate
    config: GenerateConfig
    folder: Path
    player: Player
    n_threads: int


def batch_folder(folder: Path) -> Path:
    """Return where what will be published of an unfinished batch is built."""
    return folder / "batch"


def pieces_folder(folder: Path) -> Path:
    return batch_folder(folder) / "pieces"


def is_written(candidate: Candidate, folder: Path) -> bool:
    return candidate.path(folder, "json").exists()


def write_candidates(job: WriteJob, on_candidate: Callable[[], None] | None = None) -> int:
    """Sample those candidates that are not there yet and write each as soon as it is complete; return their number."""
    left = [place for place, candidate in enumerate(job.candidates) if not is_written(candidate, job.folder)]
    if not left:
        return 0
    loaded = load_model(job.checkpoint)
    copies = CopyIndex.open(job.dataset_folder) if job.dataset_folder else None

    def keep(piece: WrittenIds) -> None:
        place = left[piece.place]
        _write_candidate(job, job.candidates[place], job.prompts[place], piece, loaded, copies)
        if on_candidate:
            on_candidate()

    write_ids(
        loaded,
        [job.prompts[place].ids for place in left],
        [job.candidates[place].index for place in left],
        [job.candidates[place].attempt for place in left],
        job.latents,
        job.config,
        keep,
        _fullness(job.config, [job.prompts[place].gap for place in left], loaded.tokenizer),
    )
    return len(left)


def _fullness(
    config: GenerateConfig, gaps: Sequence[Gap | None], tokenizer: Any
) -> Callable[[int, Tensor], bool] | None:
    """Return what tells whether ids go on beyond their limit; None where they need not be asked before their end."""
    limits = [gap.extent if gap else piece_limit(config) for gap in gaps]
    if not any(limits) or isinstance(tokenizer, MmmTokenizer):  # which comes back to the first bar for each track
        return None
    return lambda place, ids: limits[place].is_passed_by(tokenizer.decode(ids.numpy()))


def _write_candidate(
    job: WriteJob,
    candidate: Candidate,
    prompt: Prompt,
    piece: WrittenIds,
    loaded: LoadedModel,
    copies: CopyIndex | None,
) -> None:
    started, tokenizer, gap = time.perf_counter(), loaded.tokenizer, prompt.gap
    limit = gap.extent if gap else piece_limit(job.config)
    score = tokenizer.decode(piece.ids)
    is_cut = limit.is_passed_by(score)
    if gap:
        score = gap.filled(score)
    elif limit:
        score = beginning(score, limit, cut=True)  # also what sounds on beyond it
    score, n_shortened = end_at_next(score)
    title = f"{job.lineage['batch']} {candidate.name}"
    midi = write_midi(score, title, part_names=part_labels(score), ends_on_bar_line=True)
    given = _prompt_facts(prompt, tokenizer) if prompt.name and not prompt.window else None
    has_ended = bool(piece.ids[-1] == tokenizer.end_id) and not is_cut
    facts = {
        "seed": job.config.seed,
        "attempt": candidate.attempt,
        "sampling": to_json(job.config.sampling),
        "prompt": given,
        "latent": _latent_facts(job, candidate.index, score, tokenizer) if job.config.latents != "prior" else None,
        "infill": _infill_facts(job.config, gap, score, loaded) if gap else None,
        "n_tokens": len(piece.ids),
        "n_notes_shortened": n_shortened,
        "ended": has_ended,
        "ended_by": "itself" if has_ended else "limit" if is_cut else "tokens",
        "midi_sha256": hashlib.sha256(midi).hexdigest(),
        "statistics": piece_statistics(score),
        "midi": midi_statistics(midi, candidate.name),
        "validity": check_validity(midi, score).to_json(),
        "copying": copies.check(written_notes(score, prompt, tokenizer)).as_json() if copies else None,
        "warnings": _track_warnings(job.config, piece.ids, tokenizer),
    }
    measured = {
        "prompt": prompt.name or None,
        "prompt_length": len(prompt.ids),
        "generated_length": len(piece.ids) - len(prompt.ids),
        "original_length": prompt.n_whole or None,
        "ended_with_eos": bool(piece.ids[-1] == tokenizer.end_id),
        "entropy": round(float(np.mean(piece.entropies)), 4) if len(piece.entropies) else None,
        "generation_time": round(piece.seconds, 4),
        "scoring_time": round(time.perf_counter() - started, 4),
        "entropies": [round(float(entropy), 3) for entropy in piece.entropies],
    }
    write_atomically(candidate.path(job.folder, "mid"), midi)
    write_atomically(candidate.path(job.folder, "json"), json_bytes({"facts": facts, "measured": measured}))


def read_candidate(candidate: Candidate, folder: Path) -> dict[str, Any]:
    """Return `facts` and `measured` of a candidate."""
    return read_json(candidate.path(folder, "json"))


def render_pieces(job: RenderJob) -> None:
    """Write the MIDI, picture, sound and sidecar of those pieces that have none yet."""
    left = [
        (candidate, facts, sidecar)
        for candidate, facts in zip(job.chosen, job.facts, strict=True)
        if not (sidecar := pieces_folder(job.folder) / f"{candidate.name}.json").exists()
    ]
    pool = ThreadPoolExecutor(job.n_threads)  # most of the work is in compiled code, which others may run beside
    try:
        for done in [pool.submit(_render_piece, job, *piece) for piece in left]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _render_piece(job: RenderJob, candidate: Candidate, more: dict[str, Any], sidecar: Path) -> None:
    midi = candidate.path(job.folder, "mid").read_bytes()
    facts = read_candidate(candidate, job.folder)["facts"] | more
    score = read_midi(midi, candidate.name) if facts["statistics"]["n_notes"] else EMPTY_SCORE
    write_atomically(sidecar.with_suffix(".mid"), midi)
    with DRAWING:
        picture = draw_piano_roll(score)
    write_atomically(sidecar.with_suffix(".png"), picture)
    if job.config.audio != "none":
        sound = job.player.render(score)
        facts |= {"warnings": [*facts["warnings"], *sound.warnings], "played_by": sound.made_with}
        audio = encode_audio(sound.samples, sound.sample_rate, job.config.audio)
        write_atomically(sidecar.with_suffix(f".{job.config.audio}"), audio)
    if job.config.musicxml:
        page = write_musicxml(score, facts["name"])
        facts["musicxml_losses"] = page.losses
        write_atomically(sidecar.with_suffix(".mxl"), page.packed)
    write_atomically(sidecar, json_bytes(facts))


def _prompt_facts(prompt: Prompt, tokenizer: Any) -> dict[str, Any]:
    score = tokenizer.decode(np.array(prompt.ids))
    seconds = float(score.notes.end_seconds.max(initial=0.0))
    return {
        "name": prompt.name,
        "sha256": prompt.sha256,
        "n_tokens": len(prompt.ids),
        "seconds": round(seconds, 3),
        "n_file_notes": prompt.n_notes,
        "dropped": prompt.dropped,
    }


def written_notes(score: Score, prompt: Prompt, tokenizer: Any) -> Score:
    """Return a piece without the notes that its prompt gave it; all else stays where it is."""
    if prompt.gap:
        onset = score.notes.onset_seconds
        is_new = (onset >= prompt.gap.start_seconds) & (onset < prompt.gap.end_seconds)
    else:
        given = Counter(_places_of(tokenizer.decode(np.array(prompt.ids))))
        is_new = np.ones(len(score.notes.pitch), np.bool_)
        for note, place in enumerate(_places_of(score)):
            if given[place]:
                given[place] -= 1
                is_new[note] = False
    columns = {name: getattr(score.notes, name)[is_new] for name in _COLUMNS}
    return build_score(score.ticks_per_quarter, columns, tempos=score.tempos, n_tracks=score.n_tracks)


def _places_of(score: Score) -> list[tuple[int, ...]]:
    notes = score.notes
    return list(zip(*(values.tolist() for values in (notes.onset, notes.pitch, notes.track)), strict=True))


def _infill_facts(config: GenerateConfig, gap: Gap, filled: Score, loaded: LoadedModel) -> dict[str, Any]:
    return {
        "bars": config.infill_bars,
        "start_seconds": round(gap.start_seconds, 3),
        "end_seconds": round(gap.end_seconds, 3),
        "join_nats_per_token": round(join_nats(loaded, gap, filled), 4),
    }


def _track_warnings(config: GenerateConfig, ids: np.ndarray, tokenizer: Any) -> list[str]:
    if not config.n_tracks:
        return []
    n_tracks = int((ids == tokenizer.token_id("TRACK_END")).sum())
    limit = f"cut at {len(ids)} tokens: {n_tracks} of {config.n_tracks} tracks are whole"
    return [limit] if n_tracks < config.n_tracks else []


def _latent_facts(job: WriteJob, index: int, score: Score, tokenizer: Any) -> dict[str, Any]:
    """Return whose latent a piece was written from, and how many of that music's notes it has again."""
    sources = [
        {
            "name": source.name,
            "sha256": source.sha256,
            "n_tokens": len(source.ids),
            "n_tokens_cut": source.n_tokens_cut,
            "note_f1": round(note_f1(score, tokenizer.decode(np.array(source.ids))), 4),
        }
        for source in job.latents.sources_of(index)
    ]
    share = {"share": job.latents.share_of(index)} if job.latents.kind == "path" else {}
    return {"of": job.latents.kind, "sources": sources} | share
