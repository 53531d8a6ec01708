"""Work on the pieces of a batch: sampling candidates, drawing pictures and rendering sound.

A piece is first a candidate: its MIDI file, and beside it, written last, a JSON file with its facts. Candidates with
both files are finished even if a worker is killed; a later call samples their unit of work again and writes the others.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from torch import Tensor

from models.sampling.sample import FULL_EVERY, sampling_threads
from tasks.checkpoints import LoadedModel
from tasks.config.generation import GenerateConfig
from tasks.config.serialization import to_json
from tasks.copying.index import CopyIndex
from tasks.errors import DamagedFile, plural
from tasks.evaluation.continuations import continuation_files
from tasks.generation.batch_files import CONTINUATIONS, check_file, check_piece
from tasks.generation.infill import new_notes
from tasks.generation.prompts import Prompt
from tasks.generation.rewriting import Rewritten, rewrite
from tasks.music.edits import end_at_next, is_added
from tasks.music.excerpt import Extent, beginning
from tasks.music.metrics.piece_metrics import piece_statistics
from tasks.music.midi.event_statistics import midi_statistics
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.reader import read_one
from tasks.music.midi.validity import check_validity
from tasks.music.midi.writer import write_midi
from tasks.music.render.audio import encode_audio
from tasks.music.render.notation import NoNotation, write_musicxml
from tasks.music.render.pianoroll import draw_piano_roll, part_labels
from tasks.music.render.soundfont import NoSound, Player
from tasks.music.score import Score, build_score
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer
from tasks.runtime.devices import Placement
from tasks.sampling.chain import ChainShape, write_chains
from tasks.sampling.latents import LatentPlan, note_f1, path_rows
from tasks.sampling.sample_ids import WrittenIds, piece_limit, write_ids
from tasks.sampling.timing import Continued, result_row
from tasks.sampling.token_count import TokenCount
from tasks.storage.files import write_atomically
from tasks.storage.integrity import read_sealed, sealed_bytes

logger = logging.getLogger(__name__)

_COLUMNS: tuple[str, ...] = ("onset", "duration", "pitch", "velocity", "program", "is_drum", "track")
DRAWING = Lock()  # matplotlib is not made for several threads
EMPTY_SCORE = build_score(480, {name: np.zeros(0, np.int64) for name in _COLUMNS})  # no file without notes is read


@dataclass(frozen=True, slots=True)
class Candidate:
    """Piece index and attempt number."""

    index: int
    attempt: int = 0

    @property
    def name(self) -> str:
        return f"{self.index:04d}"

    def path(self, folder: Path, suffix: str) -> Path:
        return folder / "candidates" / f"{self.index:04d}-{self.attempt}.{suffix}"


@dataclass(frozen=True, slots=True)
class WritePlan:
    """Data shared by all work on a batch; a worker needs nothing else."""

    checkpoint: Path
    prompts: tuple[Prompt, ...]
    latents: LatentPlan
    config: GenerateConfig
    placement: Placement
    lineage: dict[str, str]
    folder: Path  # of the unfinished batch
    dataset_folder: Path | None  # of the version with the index of copies
    max_tokens: int  # of a piece, or of a window of a chain, its prompt included
    chain: ChainShape | None = None

    def prompt_of(self, candidate: Candidate) -> Prompt:
        return self.prompts[candidate.index % len(self.prompts)]

    def expected_tokens(self, candidate: Candidate) -> int:
        """Return the largest number of tokens drawn for a piece; an estimate where bars are written again."""
        prompt = self.prompt_of(candidate)
        if prompt.canvas is None:
            return max(self.max_tokens - len(prompt.ids), 0) * (self.chain.n_windows if self.chain else 1)
        seconds = prompt.canvas.line_seconds
        spans = prompt.canvas.spans(self.config, candidate.index)
        share = sum(span.end_seconds - span.start_seconds for span in spans) / max(seconds[-1] - seconds[0], 1e-9)
        return self.config.n_tries * (round(share * prompt.n_whole) + FULL_EVERY * len(spans))


def batch_folder(folder: Path) -> Path:
    """Return the part of an unfinished batch that is published."""
    return folder / "batch"


def pieces_folder(folder: Path) -> Path:
    """Return the folder of the chosen pieces of a batch."""
    return batch_folder(folder) / "pieces"


def write_continuations(
    plan: WritePlan, candidates: Sequence[Candidate], tokenizer: Any
) -> dict[Candidate, dict[str, str]]:
    """Write the four MIDI files of each piece that continues a prompt; return their SHA-256 by name."""
    written, files_of = dict[Candidate, dict[str, str]](), dict[str, dict[str, bytes]]()
    for candidate in candidates:
        prompt = plan.prompt_of(candidate)
        if prompt.whole is None:
            continue
        if prompt.name not in files_of:
            ids = np.array(prompt.ids), prompt.whole, prompt.whole[: prompt.n_compared(plan.max_tokens)]
            files_of[prompt.name] = continuation_files(prompt.name, *map(tokenizer.decode, ids))
        files = files_of[prompt.name] | {"generated.mid": candidate.path(plan.folder, "mid").read_bytes()}
        for name, data in files.items():
            write_atomically(batch_folder(plan.folder) / CONTINUATIONS / candidate.name / name, data)
        written[candidate] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return written


def is_written(candidate: Candidate, folder: Path) -> bool:
    """Return whether both files of a candidate are there and whole; the facts of a damaged one are deleted."""
    path = candidate.path(folder, "json")
    if not path.exists():
        return False
    try:
        check_file(candidate.path(folder, "mid"), read_candidate(candidate, folder)["facts"]["midi_sha256"])
    except (DamagedFile, FileNotFoundError) as error:
        logger.warning("%s; the piece is written again", error)
        path.unlink(missing_ok=True)
        return False
    return True


def write_unit(
    plan: WritePlan,
    unit: Sequence[Candidate],
    loaded: LoadedModel,
    copies: CopyIndex | None,
    report: Callable[[int, int], object],
    on_candidate: Callable[[Candidate], None] | None = None,
) -> None:
    """Write those candidates of a unit of work that are not there yet, each as soon as it is complete.

    A row's bytes depend on the rows beside it. So the whole unit is sampled even where some of it is written.

    Args:
        loaded, copies: the plan's model and index.
        report: gets the tokens that are drawn; see `TokenCount`.
    """
    missing = {candidate for candidate in unit if not is_written(candidate, plan.folder)}
    count, expected = TokenCount(report), {candidate: plan.expected_tokens(candidate) for candidate in unit}
    if not missing:
        count.ended(sum(expected.values()), 0)  # by an earlier try
        return

    def keep(piece: WrittenIds, new: Rewritten | None = None) -> None:
        candidate = unit[piece.place]
        n_drawn = new.n_drawn if new else len(piece.ids) - len(plan.prompt_of(candidate).ids)
        count.ended(expected[candidate], n_drawn)
        if candidate not in missing:
            return
        _write_candidate(plan, candidate, piece, loaded, copies, new)
        if on_candidate:
            on_candidate(candidate)

    def keep_partial(piece: WrittenIds) -> None:
        if unit[piece.place] not in missing:
            return
        path = plan.folder / "partial" / f"{unit[piece.place].name}.mid"
        write_atomically(path, write_midi(end_at_next(loaded.tokenizer.decode(piece.ids))[0], path.stem))
        logger.warning("interrupted: the piece at work is in %s as far as it is; the same command begins it anew", path)

    prompts, config = [plan.prompt_of(candidate) for candidate in unit], plan.config
    indices, attempts = [candidate.index for candidate in unit], [candidate.attempt for candidate in unit]
    canvases = [prompt.canvas for prompt in prompts if prompt.canvas]
    with sampling_threads(config.sampling.threads):
        if plan.chain:
            write_chains(loaded, indices, attempts, plan.latents, config, keep, count.drawn)
        elif canvases:
            rewrite(loaded, canvases, indices, attempts, config, lambda new: keep(new.written, new), count.drawn)
        else:
            ids, fullness = [prompt.ids for prompt in prompts], _fullness(config, loaded.tokenizer)
            write_ids(loaded, ids, indices, attempts, plan.latents, config, keep, fullness, count.drawn, keep_partial)
    count.flush()


def _fullness(config: GenerateConfig, tokenizer: Any) -> Callable[[int, Tensor], bool] | None:
    """Return a check whether ids exceed their limit; None where the check is only needed at their end."""
    limit = piece_limit(config)
    if not limit or isinstance(tokenizer, MmmTokenizer):  # which comes back to the first bar for each track
        return None
    return lambda _, ids: limit.is_passed_by(tokenizer.decode(ids.numpy()))


def _write_candidate(
    plan: WritePlan,
    candidate: Candidate,
    piece: WrittenIds,
    loaded: LoadedModel,
    copies: CopyIndex | None,
    new: Rewritten | None,
) -> None:
    prompt = plan.prompt_of(candidate)
    started, tokenizer = time.perf_counter(), loaded.tokenizer
    score, ended_by = (new.score, new.ended_by) if new else _ended(piece, piece_limit(plan.config), tokenizer)
    short_of, warnings = ([], new.warnings) if new else _shortfall(plan.config, score, ended_by, piece.ids, tokenizer)
    if piece.chain:
        ended_by = "limit"
        if n_empty := piece.chain["n_empty_bars"]:
            warnings = [*warnings, f"{plural(n_empty, 'bar')} of single tracks are empty: their windows had no room"]
    score, n_shortened = end_at_next(score)
    title = f"{plan.lineage['batch']} {candidate.name}"
    midi = write_midi(score, title, part_names=part_labels(score), ends_on_bar_line=True)
    events = read_one(midi)
    own = written_notes(score, prompt, tokenizer, new)
    given = _prompt_facts(prompt, tokenizer) if prompt.name and not prompt.window else None
    facts = {
        "seed": plan.config.seed,
        "attempt": candidate.attempt,
        "sampling": to_json(plan.config.sampling),
        "prompt": given,
        "latent": _latent_facts(plan.latents, candidate.index, score, piece.chain, loaded),
        "infill": new.to_json(plan.config.variation) if new else None,
        "n_tokens": len(piece.ids),
        "n_new_notes": len(own.notes.pitch),
        "n_notes_shortened": n_shortened,
        "ended": ended_by == "itself",
        "ended_by": ended_by,
        "short_of": short_of,
        "midi_sha256": hashlib.sha256(midi).hexdigest(),
        "statistics": piece_statistics(score),
        "midi": midi_statistics(midi, candidate.name, events),
        "validity": check_validity(midi, score, events).to_json(),
        "copying": copies.check(own).as_json() if copies else None,
        "warnings": warnings,
    }
    n_given = new.n_given if new else len(prompt.ids)
    seconds = time.perf_counter() - started
    continued = Continued(
        prompt=prompt.name, path=prompt.path, prompt_length=n_given, original_length=prompt.n_whole,
        n_compared=prompt.n_compared(plan.max_tokens),
        folder="" if prompt.whole is None else f"{CONTINUATIONS}/{candidate.name}",
    )  # fmt: skip
    measured = result_row(piece, continued, tokenizer.end_id, seconds)
    write_atomically(candidate.path(plan.folder, "mid"), midi)
    write_atomically(candidate.path(plan.folder, "json"), sealed_bytes({"facts": facts, "measured": measured}))


def _ended(piece: WrittenIds, limit: Extent, tokenizer: Any) -> tuple[Score, str]:
    """Return the music of a piece up to its limit, and what ended it: `itself`, the `limit`, or the most `tokens`."""
    score = tokenizer.decode(piece.ids)
    is_cut, is_ended = limit.is_passed_by(score), piece.ids[-1] == tokenizer.end_id
    if limit:
        score = beginning(score, limit, cut=True)  # notes that sound beyond it are cut
    return score, "limit" if is_cut else "itself" if is_ended else "tokens"


def read_candidate(candidate: Candidate, folder: Path) -> dict[str, Any]:
    """Return `facts` and `measured` of a candidate, checked by their seal."""
    return read_sealed(candidate.path(folder, "json"), {"facts": {"midi_sha256": str}, "measured": dict})


def render_pieces(
    plan: WritePlan,
    chosen: Mapping[Candidate, dict[str, Any]],
    player: Player,
    n_threads: int,
    on_piece: Callable[[Candidate], None] | None = None,
) -> dict[str, Score]:
    """Write the MIDI, picture, sound and sidecar of those pieces that have none yet; return their music by name.

    Args:
        chosen: the facts of each sidecar, besides those of its candidate.
    """
    sidecars = {candidate: pieces_folder(plan.folder) / f"{candidate.name}.json" for candidate in chosen}
    left = [candidate for candidate in chosen if not _is_rendered(sidecars[candidate])]
    scores = dict[str, Score]()
    pool = ThreadPoolExecutor(n_threads)  # most of the work is in compiled code, which others may run beside
    try:
        running = {pool.submit(_render_piece, plan, c, chosen[c], sidecars[c], player): c for c in left}
        for done in as_completed(running):
            scores[running[done].name] = done.result()
            if on_piece:
                on_piece(running[done])
    finally:
        pool.shutdown(cancel_futures=True)
    return scores


def _is_rendered(sidecar: Path) -> bool:
    try:
        check_piece(sidecar)
    except DamagedFile as error:
        if sidecar.exists():
            logger.warning("%s; the piece is rendered again", error)
        return False
    return True


def read_piece(midi: Path, facts: Mapping[str, Any]) -> Score:
    """Return the music of a candidate or piece, by its file and what is known of it."""
    return read_midi(midi) if facts["statistics"]["n_notes"] else EMPTY_SCORE


def _render_piece(plan: WritePlan, candidate: Candidate, more: dict[str, Any], sidecar: Path, player: Player) -> Score:
    midi, facts = candidate.path(plan.folder, "mid"), read_candidate(candidate, plan.folder)["facts"] | more
    score = read_piece(midi, facts)
    _link(midi, sidecar.with_suffix(".mid"))
    files: dict[str, bytes] = {}
    with DRAWING:
        files["png"] = draw_piano_roll(score)
    if plan.config.audio != "none":
        try:
            sound = player.render(score)
        except NoSound as error:  # the page plays the notes itself
            facts["warnings"] = [*facts["warnings"], f"no audio: {error}"]
        else:
            facts |= {"warnings": [*facts["warnings"], *sound.warnings], "played_by": sound.made_with}
            files[plan.config.audio] = encode_audio(sound.samples, sound.sample_rate, plan.config.audio)
    if plan.config.musicxml:
        try:
            page = write_musicxml(score, facts["name"])
        except NoNotation as error:
            facts["warnings"] = [*facts["warnings"], f"no MusicXML: {error}"]
        else:
            facts["musicxml_losses"] = page.losses
            files["mxl"] = page.packed
    for suffix, data in files.items():
        write_atomically(sidecar.with_suffix(f".{suffix}"), data)
    facts["files"] = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in files.items()}
    write_atomically(sidecar, sealed_bytes(facts))
    return score


def _link(source: Path, target: Path) -> None:
    """Give a finished file a second name; it is copied where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


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
    } | ({"asked_notes": prompt.asked_notes} if prompt.asked_notes else {})


def written_notes(score: Score, prompt: Prompt, tokenizer: Any, new: Rewritten | None = None) -> Score:
    """Return a piece without the notes of its prompt; the others keep their places."""
    if new:
        is_new = new_notes(score, new.new_spans)
    else:
        given = tokenizer.decode(np.array(prompt.ids))
        # Not by track: a part that is added before the prompt's first part changes all numbers.
        is_new = is_added(given, score, ("onset", "pitch", "program", "is_drum"))
    columns = {name: getattr(score.notes, name)[is_new] for name in _COLUMNS}
    return build_score(score.ticks_per_quarter, columns, tempos=score.tempos, n_tracks=score.n_tracks)


def _shortfall(
    config: GenerateConfig, score: Score, ended_by: str, ids: np.ndarray, tokenizer: Any
) -> tuple[list[str], list[str]]:
    """Return the lengths that a piece with the most tokens does not reach, and a warning about them."""
    if ended_by != "tokens":
        return [], []
    limit, short_of = piece_limit(config), dict[str, str]()
    if limit and not limit.is_filled_by(score):
        short_of[f"{limit}"] = f"{limit} are not reached"
    n_tracks = int((ids == tokenizer.token_id("TRACK_END")).sum()) if config.n_tracks else 0
    if n_tracks < config.n_tracks:
        tracks = plural(config.n_tracks, "track")
        short_of[tracks] = f"{n_tracks} of {tracks} are whole"
    warnings = [f"cut at {len(ids)} tokens: {', '.join(short_of.values())}"] if short_of else []
    return list(short_of), warnings


def _latent_facts(
    latents: LatentPlan, index: int, score: Score, chain: Mapping[str, Any] | None, loaded: LoadedModel
) -> dict[str, Any] | None:
    """Return the sources of a piece's latent and the share of their notes that it has, its windows, and its path."""
    if latents.kind == "prior" and not chain:
        return None
    tokenizer = loaded.tokenizer
    sources = [
        {
            "name": source.name,
            "sha256": source.sha256,
            "n_tokens": len(source.ids),
            "n_tokens_cut": source.n_tokens_cut,
            "note_f1": round(note_f1(score, tokenizer.decode(np.array(source.ids))), 4),
        }
        for source in latents.sources_of(index)
    ]
    facts: dict[str, Any] = {"of": latents.kind, "sources": sources}
    if latents.variation:
        facts["variation"] = latents.variation
    windows = [tokenizer.decode(np.array(ids)) for ids in chain["windows"]] if chain else []
    if chain:
        facts["chain"] = {name: value for name, value in chain.items() if name != "windows"}
    if latents.kind == "path":
        facts["path"] = path_rows(loaded, latents.sources, latents.shares_of(index, len(windows)), windows or [score])
        if not chain:
            facts["share"] = facts["path"][0]["share"]
    return facts
