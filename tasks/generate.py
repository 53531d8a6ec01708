"""A model and a seed -> a batch of compositions: MIDI, statistics, lineage, picture, sound, and one page for them."""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.vae import Vae
from tasks import cluster
from tasks.checkpoints import LoadedModel, load_model
from tasks.config import GenerateConfig, digest, to_json
from tasks.encode import grid_of
from tasks.errors import BadScore, DatasetError, NotFound, OrchestrionError
from tasks.gallery import GalleryPiece, RollNotes, build_gallery
from tasks.home import Home, json_bytes, publish_folder, read_json, write_atomically
from tasks.latent_pieces import LatentPlan, LatentSource, note_f1
from tasks.music.metrics import piece_statistics
from tasks.music.midi_statistics import midi_statistics
from tasks.music.notes import NoteBatch
from tasks.music.pianoroll import draw_piano_roll
from tasks.music.score import Score, read_midi, write_midi
from tasks.music.synth import encode_audio, render
from tasks.music.tokenizers.base import TokenBatch
from tasks.music.windows import cut_windows
from tasks.piece_ids import check_prompt_ids, check_request, write_ids
from tasks.sources.names import MIDI_SUFFIXES, is_midi, printable
from tasks.tracking import ModelVersion, git_commit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning that a piece continues."""

    name: str
    sha256: str
    ids: tuple[int, ...]  # <start> included
    n_whole: int = 0  # tokens of the whole of it, or of its first window where that is what a latent is made of
    window: tuple[int, ...] = ()  # as much of it as a model with latents makes one of; else empty
    n_notes: int = 0  # of the file
    dropped: dict[str, int] = field(default_factory=dict)  # notes that the encoding left out or changed, by reason


@dataclass(frozen=True, slots=True)
class GenerateJob:
    """Some pieces of a batch; a worker needs nothing else."""

    checkpoint: Path
    indices: tuple[int, ...]
    prompts: tuple[Prompt, ...]  # one for each index
    latents: LatentPlan
    config: GenerateConfig
    lineage: dict[str, str]
    folder: Path


@dataclass(frozen=True, slots=True, eq=False)
class MadePiece:
    """A finished piece: its sidecar, what it continues, and what was measured while it was sampled."""

    sidecar: dict[str, Any]
    prompt: Prompt
    entropies: np.ndarray
    seconds: float


@dataclass(frozen=True, slots=True)
class Batch:
    """A finished batch."""

    name: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def gallery(self) -> Path:
        return self.folder / "gallery.html"

    @property
    def results(self) -> Path:
        """What `results_of` says; beside the folder, for measured times are not the same bytes every time."""
        return self.folder.with_name(f"{self.name}.results.json")


def read_prompts(loaded: LoadedModel, config: GenerateConfig) -> list[Prompt]:
    """Return the prompts that `config` names, in order of path; none means one that is only <start>.

    Raises:
        NotFound, BadScore: a path that does not exist, or a file that is not usable MIDI.
        ConfigError: latents of prompts are wanted that the model or the prompts do not give.
    """
    tokenizer = loaded.tokenizer
    named = [config.prompt, config.prompt_to] if config.prompt_to else [config.prompt]
    files = [file for prompt in named if prompt for file in _prompt_files(Path(prompt))]
    check_request(loaded, config, len(files))
    if not files:
        return [Prompt("", "", (tokenizer.start_id,))]
    prompts = []
    for name, path in files:
        try:
            data = path.read_bytes()
            score = read_midi(data, name)
        except OSError as error:
            raise NotFound(f"prompt {name}: {error.strerror} ({path})") from None
        except BadScore as error:
            raise BadScore(error.reason, f"prompt {name}: {error.detail}") from None
        prompts.append(_encode_prompt(loaded, config, name, data, score))
        check_prompt_ids(loaded, config, prompts[-1].ids, name)
    return prompts


def _encode_prompt(loaded: LoadedModel, config: GenerateConfig, name: str, data: bytes, score: Score) -> Prompt:
    tokenizer, batch = loaded.tokenizer, NoteBatch.from_scores([score])
    sha256, n_notes = hashlib.sha256(data).hexdigest(), len(score.notes.pitch)
    if config.latents == "prior":
        tokens = tokenizer.encode(batch)
        ids = tokens.ids[: min(config.prompt_tokens, len(tokens.ids) - 1)]  # a whole short piece: without its <end>
        return Prompt(name, sha256, tuple(ids.tolist()), len(tokens.ids), (), n_notes, losses(tokens))
    assert isinstance(loaded.model, Vae)
    bars = int(loaded.state["dataset"].get("window_bars", 0))
    if bars:
        batch = cut_windows(batch, bars, bars, grid_of(tokenizer.config))[0].take(np.array([0]))
    tokens = tokenizer.encode(batch)
    window = tuple(tokens.ids[: loaded.model.max_length].tolist())
    return Prompt(name, sha256, (tokenizer.start_id,), len(tokens.ids), window, n_notes, losses(tokens))


def losses(tokens: TokenBatch) -> dict[str, int]:
    """Return the notes that an encoding left out or changed, by reason."""
    return {reason: n for reason, counts in tokens.dropped.items() if (n := int(counts.sum()))}


def _prompt_files(prompt: Path) -> list[tuple[str, Path]]:
    """Return (name, path) of the prompt, or of the MIDI files below it, in order of name."""
    if not prompt.exists():
        raise NotFound(f"prompt {prompt} does not exist")
    if prompt.is_file():
        if not is_midi(os.fsencode(prompt.name)):
            raise DatasetError(f"prompt {prompt} is neither a folder nor a {' '.join(MIDI_SUFFIXES)} file")
        return [(printable(prompt.name), prompt)]
    files = [path for path in prompt.rglob("*") if is_midi(os.fsencode(path.name))]
    if not files:
        raise DatasetError(f"prompt {prompt} holds no MIDI file ({', '.join(MIDI_SUFFIXES)})")
    return sorted((printable(str(path.relative_to(prompt))), path) for path in files)


def batch_name(model: ModelVersion, config: GenerateConfig, prompts: list[Prompt], checkpoint: Path) -> str:
    """Return the name that model, settings and prompts determine; what only changes the speed does not count."""
    settings = to_json(config)
    for without_effect in ("batch_size", "n_workers", "prompt", "prompt_to"):
        settings.pop(without_effect)
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    identity = {
        "model": model.reference,
        "weights": weights,
        "config": settings,
        "prompts": [(p.name, p.sha256) for p in prompts],
    }
    return f"{model.name}-v{model.version}-{digest(identity)[:10]}"


def find_batch(home: Home, name: str) -> Batch | None:
    """Return a finished batch, or None."""
    manifest = home.generations / name / "manifest.json"
    return Batch(name, manifest.parent, read_json(manifest)) if manifest.exists() else None


def resolve_batch(home: Home, name: str) -> Batch:
    """Return a finished batch by name or by path.

    Raises:
        NotFound: there is none.
    """
    batch = find_batch(home, name)
    if batch is None:
        known = sorted(path.parent.name for path in home.generations.glob("*/manifest.json"))
        raise NotFound(f"no batch {name!r} in {home.generations}; known: {', '.join(known) or 'none yet'}")
    return batch


def generate_batch(
    home: Home,
    model: ModelVersion,
    checkpoint: Path,
    config: GenerateConfig,
    on_pieces: Callable[[int], None] | None = None,
) -> Batch:
    """Compose a batch and publish it in one step.

    The bytes depend on the model, the settings and the prompts; `batch_size` and `n_workers` change only the speed.
    """
    loaded = load_model(checkpoint)
    prompts = read_prompts(loaded, config)
    name = batch_name(model, config, prompts, checkpoint)
    final = home.generations / name
    temporary = home.generations / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "pieces").mkdir(parents=True)
    sources = tuple(LatentSource(p.name, p.sha256, p.window, p.n_whole - len(p.window)) for p in prompts)
    latents = LatentPlan(config.latents, sources, config.n_pieces)
    lineage = {
        "batch": name,
        "model_version": model.reference,
        "model_run_id": model.run_id,
        "dataset_version": "{name}@{version}".format(**loaded.state["dataset"]),
        "code_commit": git_commit(),
    }
    try:
        jobs = _cut_into_jobs(checkpoint, prompts, latents, config, lineage, temporary)
        manifest, results = _compose(jobs, config, lineage, on_pieces)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)  # asked for anew: the same bytes again
    batch = Batch(name, final, manifest)
    write_atomically(batch.results, json_bytes(results))
    publish_folder(temporary, final)
    return batch


def _compose(
    jobs: list[GenerateJob],
    config: GenerateConfig,
    lineage: dict[str, str],
    on_pieces: Callable[[int], None] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fill the jobs' folder with a batch; return its manifest, the last file written, and what was measured."""
    folder = jobs[0].folder
    made: list[MadePiece] = []
    if config.n_workers == 1:
        for job in jobs:
            made += generate_pieces(job)
            if on_pieces:
                on_pieces(len(job.indices))
    else:
        report = on_pieces or (lambda n: None)
        done = cluster.run_over(generate_pieces, jobs, lambda some: report(len(some)), max_in_flight=config.n_workers)
        made += [piece for some in done for piece in some]
    sidecars = [piece.sidecar for piece in made]
    manifest = lineage | {
        "config": to_json(config)
        | dict.fromkeys(("batch_size", "n_workers", "prompt", "prompt_to")),  # see each sidecar's prompt
        "n_pieces": len(sidecars),
        "n_ended": sum(piece["ended"] for piece in sidecars),
        "pieces": [{"name": piece["name"], "midi_sha256": piece["midi_sha256"]} for piece in sidecars],
        "statistics": _means([piece["statistics"] for piece in sidecars]),
    }
    write_atomically(folder / "gallery.html", _gallery(folder, sidecars, manifest).encode())
    write_atomically(folder / "manifest.json", json_bytes(manifest))
    return manifest, results_of(made)


def results_of(made: list[MadePiece]) -> dict[str, Any]:
    """Return lengths, entropies and times; measured, so that they are not the same bytes in every run of a batch.

    Lengths are in tokens: `original_length` of all of a prompt's file, `prompt_length` of what was taken of it.
    Entropies are in nats, of the model's distribution at each token drawn. `generation_time` is a piece's share of the
    seconds that its job took to sample.
    """
    rows = [
        {
            "piece": piece.sidecar["name"],
            "prompt": piece.prompt.name or None,
            "prompt_length": len(piece.prompt.ids),
            "generated_length": piece.sidecar["n_tokens"] - len(piece.prompt.ids),
            "original_length": piece.prompt.n_whole or None,
            "ended_with_eos": piece.sidecar["ended"],
            "entropy": round(float(np.mean(piece.entropies)), 4) if len(piece.entropies) else None,
            "generation_time": round(piece.seconds, 4),
            "entropies": [round(float(entropy), 3) for entropy in piece.entropies],
        }
        for piece in made
    ]
    means = [row["entropy"] for row in rows if row["entropy"] is not None]
    return {
        "mean_entropy": round(float(np.mean(means)), 4) if means else None,
        "mean_generation_time": round(float(np.mean([row["generation_time"] for row in rows])), 4),
        "pieces": rows,
    }


def generate_pieces(job: GenerateJob) -> list[MadePiece]:
    """Sample some pieces and write their files."""
    started = time.perf_counter()
    loaded = load_model(job.checkpoint)
    written, entropies = write_ids(loaded, [prompt.ids for prompt in job.prompts], job.indices, job.latents, job.config)
    seconds = (time.perf_counter() - started) / len(written)
    return [
        MadePiece(write_piece(job, index, prompt, ids, loaded.tokenizer), prompt, entropy, seconds)
        for index, prompt, ids, entropy in zip(job.indices, job.prompts, written, entropies, strict=True)
    ]


def write_piece(job: GenerateJob, index: int, prompt: Prompt, ids: np.ndarray, tokenizer: Any) -> dict[str, Any]:
    """Write one piece's MIDI, sidecar, picture and sound; return the sidecar."""
    name = f"{index:04d}"
    score = tokenizer.decode(ids)
    midi = write_midi(score, f"{job.lineage['batch']} {name}")
    _check_readable(midi, score, name)
    sidecar = job.lineage | {
        "name": name,
        "index": index,
        "seed": job.config.seed,
        "sampling": to_json(job.config.sampling),
        "prompt": _prompt_facts(prompt, tokenizer) if prompt.name and not prompt.window else None,
        "latent": _latent_facts(job, index, score, tokenizer) if job.config.latents != "prior" else None,
        "n_tokens": len(ids),
        "ended": bool(ids[-1] == tokenizer.end_id),
        "midi_sha256": hashlib.sha256(midi).hexdigest(),
        "statistics": piece_statistics(score),
        "midi": midi_statistics(midi, name),
        "warnings": _track_warnings(job.config, ids, tokenizer),
    }
    pieces = job.folder / "pieces"
    write_atomically(pieces / f"{name}.mid", midi)
    write_atomically(pieces / f"{name}.png", draw_piano_roll(score))
    if job.config.audio != "none":
        sound = render(score)
        sidecar["warnings"] = [*sidecar["warnings"], *sound.warnings]
        write_atomically(
            pieces / f"{name}.{job.config.audio}", encode_audio(sound.samples, sound.sample_rate, job.config.audio)
        )
    write_atomically(pieces / f"{name}.json", json_bytes(sidecar))
    return sidecar


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


def _track_warnings(config: GenerateConfig, ids: np.ndarray, tokenizer: Any) -> list[str]:
    if not config.n_tracks:
        return []
    n_tracks = int((ids == tokenizer.token_id("TRACK_END")).sum())
    limit = f"cut at {len(ids)} tokens: {n_tracks} of {config.n_tracks} tracks are whole"
    return [limit] if n_tracks < config.n_tracks else []


def _latent_facts(job: GenerateJob, index: int, score: Score, tokenizer: Any) -> dict[str, Any]:
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


def _check_readable(midi: bytes, score: Score, name: str) -> None:
    if not len(score.notes.pitch):
        return
    n_read = len(read_midi(midi, name).notes.pitch)
    if n_read != len(score.notes.pitch):
        raise OrchestrionError(f"piece {name}: wrote {len(score.notes.pitch)} notes, reading back gives {n_read}")


def _cut_into_jobs(
    checkpoint: Path,
    prompts: list[Prompt],
    latents: LatentPlan,
    config: GenerateConfig,
    lineage: dict[str, str],
    folder: Path,
) -> list[GenerateJob]:
    per_job = max(1, min(config.batch_size, -(-config.n_pieces // config.n_workers)))
    jobs = []
    for first in range(0, config.n_pieces, per_job):
        indices = tuple(range(first, min(first + per_job, config.n_pieces)))
        chosen = tuple(prompts[index % len(prompts)] for index in indices)
        jobs.append(GenerateJob(checkpoint, indices, chosen, latents, config, lineage, folder))
    return jobs


def _means(pieces: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([piece[name] for piece in pieces])) for name in pieces[0]}


def _gallery(folder: Path, sidecars: list[dict[str, Any]], manifest: dict[str, Any]) -> str:
    pieces = [_gallery_piece(folder / "pieces", sidecar) for sidecar in sidecars]
    sampling = ", ".join(f"{key} {value}" for key, value in manifest["config"]["sampling"].items() if value is not None)
    facts = {
        "model": manifest["model_version"],
        "dataset": manifest["dataset_version"],
        "run": manifest["model_run_id"],
        "code": manifest["code_commit"],
        "seed": str(manifest["config"]["seed"]),
        "sampling": sampling,
    }
    subtitle = f"{manifest['n_pieces']} pieces, {manifest['n_ended']} of them ended by themselves"
    return build_gallery(manifest["batch"], subtitle, pieces, facts)


def _gallery_piece(pieces: Path, sidecar: dict[str, Any]) -> GalleryPiece:
    midi = (pieces / f"{sidecar['name']}.mid").read_bytes()
    notes = RollNotes.from_score(read_midi(midi)) if sidecar["statistics"]["n_notes"] else RollNotes.empty()
    audio = pieces / f"{sidecar['name']}.mp3"
    return GalleryPiece(
        name=sidecar["name"],
        midi=midi,
        notes=notes,
        audio=audio.read_bytes() if audio.exists() else None,
        png=(pieces / f"{sidecar['name']}.png").read_bytes(),
        statistics=sidecar["statistics"],
        lineage=[
            f"{sidecar['n_tokens']} tokens, {'ended by itself' if sidecar['ended'] else 'cut at the limit'}",
            f"midi sha256 {sidecar['midi_sha256']}",
        ],
        prompt=sidecar["prompt"]["name"] if sidecar["prompt"] else None,
        prompt_seconds=sidecar["prompt"]["seconds"] if sidecar["prompt"] else None,
        warnings=sidecar["warnings"],
    )
