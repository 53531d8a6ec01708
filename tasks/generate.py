"""A model and a seed -> a batch of compositions: MIDI, statistics, lineage, picture, sound, and one page for them."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import cluster
from tasks.checkpoints import load_model
from tasks.config import GenerateConfig, digest, to_json
from tasks.errors import NotFound
from tasks.gallery import GalleryPiece, RollNotes, build_gallery
from tasks.home import Home, json_bytes, publish_folder, read_json, write_atomically
from tasks.latent_pieces import LatentPlan, LatentSource
from tasks.music.score import read_midi
from tasks.piece_work import (
    Candidate,
    RenderJob,
    WriteJob,
    batch_folder,
    is_written,
    pieces_folder,
    read_candidate,
    render_pieces,
    write_candidates,
)
from tasks.prompts import Prompt, read_prompts
from tasks.tracking import ModelVersion, git_commit

logger = logging.getLogger(__name__)


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


def batch_name(model: ModelVersion, config: GenerateConfig, prompts: list[Prompt], checkpoint: Path) -> str:
    """Return the name that model, settings and prompts determine; what only changes the speed does not count."""
    settings = to_json(config)
    for without_effect in ("batch_size", "n_workers", "prompt", "prompt_to"):  # prompts count by their contents
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
    What ends it early keeps the pieces that are written, and the same call goes on with the others.
    """
    loaded = load_model(checkpoint)
    prompts = read_prompts(loaded, config, home)
    name = batch_name(model, config, prompts, checkpoint)
    lineage = {
        "batch": name,
        "model_version": model.reference,
        "model_run_id": model.run_id,
        "dataset_version": "{name}@{version}".format(**loaded.state["dataset"]),
        "code_commit": git_commit(),
    }
    folder = open_unfinished(home, lineage)
    chosen = _write_all(WritePlan(checkpoint, prompts, config, lineage, folder), on_pieces)
    _render_all(chosen, config, folder)
    manifest = _write_manifest(folder, config, lineage)
    batch = Batch(name, home.generations / name, manifest)
    write_atomically(batch.results, json_bytes(results_of(chosen, folder)))
    publish_folder(batch_folder(folder), batch.folder)  # asked for anew: the same bytes again
    shutil.rmtree(folder, ignore_errors=True)
    return batch


def open_unfinished(home: Home, lineage: dict[str, str]) -> Path:
    """Return the folder of an unfinished batch: one that was left, or an empty one.

    What other code has begun is not gone on with, for its pieces might differ.
    """
    folder = home.generations / f".{lineage['batch']}.unfinished"
    told = folder / "lineage.json"
    if told.exists() and read_json(told) != lineage:
        logger.info("an unfinished batch of other code is thrown away: %s", folder)
        shutil.rmtree(folder)
    for part in (folder / "candidates", pieces_folder(folder)):
        part.mkdir(parents=True, exist_ok=True)
    write_atomically(told, json_bytes(lineage))
    return folder


@dataclass(frozen=True, slots=True)
class WritePlan:
    """What all write jobs of a batch have in common."""

    checkpoint: Path
    prompts: list[Prompt]
    config: GenerateConfig
    lineage: dict[str, str]
    folder: Path

    def jobs(self, candidates: Sequence[Candidate]) -> list[WriteJob]:
        """Deal candidates of one attempt out to the workers, who each keep all their rows in use while any is left."""
        sources = tuple(LatentSource(p.name, p.sha256, p.window, p.n_whole - len(p.window)) for p in self.prompts)
        latents = LatentPlan(self.config.latents, sources, self.config.n_pieces)
        shares = [tuple(candidates[worker :: self.config.n_workers]) for worker in range(self.config.n_workers)]
        return [
            WriteJob(
                self.checkpoint, share, tuple(self.prompts[c.index % len(self.prompts)] for c in share), latents,
                self.config, self.lineage, self.folder,
            )
            for share in shares if share
        ]  # fmt: skip


def _write_all(plan: WritePlan, on_pieces: Callable[[int], None] | None) -> list[Candidate]:
    """Write all candidates and return the chosen one of each piece."""
    candidates = [Candidate(index) for index in range(plan.config.n_pieces)]
    report = Countdown(plan.folder, candidates, on_pieces)
    report()
    jobs = plan.jobs(report.left)
    if plan.config.n_workers == 1:
        for job in jobs:
            write_candidates(job, report.count_one)
    else:
        cluster.run_over(write_candidates, jobs, max_in_flight=len(jobs), on_wait=report)
        report()
    return candidates


class Countdown:
    """Tells how many more candidates are written than when it was last asked."""

    def __init__(self, folder: Path, candidates: Sequence[Candidate], on_pieces: Callable[[int], None] | None) -> None:
        self.folder, self.left, self.on_pieces = folder, list(candidates), on_pieces

    def __call__(self) -> None:
        left = [candidate for candidate in self.left if not is_written(candidate, self.folder)]
        if self.on_pieces and len(left) < len(self.left):
            self.on_pieces(len(self.left) - len(left))
        self.left = left

    def count_one(self) -> None:
        if self.on_pieces:
            self.on_pieces(1)


def _render_all(chosen: Sequence[Candidate], config: GenerateConfig, folder: Path) -> None:
    lineage = read_json(folder / "lineage.json")
    shares = [tuple(chosen[worker :: config.n_workers]) for worker in range(config.n_workers)]
    jobs = [
        RenderJob(share, tuple(lineage | {"name": c.name, "index": c.index} for c in share), config, folder)
        for share in shares if share
    ]  # fmt: skip
    if config.n_workers == 1:
        for job in jobs:
            render_pieces(job)
    else:
        cluster.run_over(render_pieces, jobs, max_in_flight=len(jobs))


def _write_manifest(folder: Path, config: GenerateConfig, lineage: dict[str, str]) -> dict[str, Any]:
    """Write the page and, last, the manifest of a batch; return the latter."""
    target = batch_folder(folder)
    sidecars = [read_json(path) for path in sorted(pieces_folder(folder).glob("*.json"))]
    manifest = lineage | {
        "config": to_json(config)
        | dict.fromkeys(("batch_size", "n_workers", "prompt", "prompt_to")),  # see each sidecar's prompt
        "n_pieces": len(sidecars),
        "n_ended": sum(piece["ended"] for piece in sidecars),
        "pieces": [{"name": piece["name"], "midi_sha256": piece["midi_sha256"]} for piece in sidecars],
        "statistics": _means([piece["statistics"] for piece in sidecars]),
    }
    write_atomically(target / "gallery.html", _gallery(target, sidecars, manifest).encode())
    write_atomically(target / "manifest.json", json_bytes(manifest))
    return manifest


def results_of(chosen: Sequence[Candidate], folder: Path) -> dict[str, Any]:
    """Return lengths, entropies and times; measured, so that they are not the same bytes in every run of a batch.

    Lengths are in tokens: `original_length` of all of a prompt's file, `prompt_length` of what was taken of it.
    Entropies are in nats, of the model's distribution at each token drawn. `generation_time` is a piece's share of the
    seconds of the steps that sampled it.
    """
    rows = [{"piece": candidate.name} | read_candidate(candidate, folder)["measured"] for candidate in chosen]
    means = [row["entropy"] for row in rows if row["entropy"] is not None]
    return {
        "mean_entropy": round(float(np.mean(means)), 4) if means else None,
        "mean_generation_time": round(float(np.mean([row["generation_time"] for row in rows])), 4),
        "pieces": rows,
    }


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
