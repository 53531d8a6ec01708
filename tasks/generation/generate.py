"""A batch of compositions from a model and a seed: MIDI, statistics, lineage, pictures, sound and a gallery."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks.checkpoints import LoadedModel, load_model
from tasks.config.generation import GenerateConfig
from tasks.config.serialization import digest, to_json
from tasks.errors import ConfigError, DamagedFile
from tasks.generation.batch_files import RESULTS, check_batch, check_piece, read_manifest, read_run_note, run_note_path
from tasks.generation.candidates import (
    WritePlan,
    batch_folder,
    pieces_folder,
    read_candidate,
    write_continuations,
)
from tasks.generation.gallery.batch_page import batch_page
from tasks.generation.judge import CUT_SHORT, NOTHING_NEW, Judge, batch_flags, is_cut_within_bars
from tasks.generation.prompts import Prompt, read_prompts, warn_of_losses, with_room
from tasks.generation.selection import Choice, choose_pieces, first_candidates, n_workers_of, render_all
from tasks.music.midi.validity import Validity, share_valid
from tasks.music.render.notation import check_notation
from tasks.music.render.soundfont import find_player
from tasks.music.score import Score
from tasks.runtime.devices import Placement, check_workers, device_of, place_here_or_on_ray
from tasks.runtime.progress import Progress
from tasks.sampling.chain import chain_shape
from tasks.sampling.latents import LatentPlan, LatentSource, latents_of, steps_on_way
from tasks.sampling.timing import Clock, results_of
from tasks.storage.files import json_bytes, publish_folder, write_atomically
from tasks.storage.home import Home
from tasks.storage.integrity import read_sealed, sealed_bytes
from tasks.storage.project import code_digest, git_commit
from tasks.tracking.mlflow_tracker import ModelVersion

logger = logging.getLogger(__name__)

# Settings that change only the speed, or stand for the contents of a file.
NOT_IN_NAME = ("n_workers", "gpus_per_worker", "prompt", "prompt_to", "renderer", "soundfont")


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
        """The results of `results_of`; beside the folder, because measured times differ between runs."""
        return self.folder.with_name(f"{self.name}.results.json")

    def logged_run(self) -> str:
        """Return the tracker's run of the batch, empty if there is none yet."""
        return read_run_note(self.folder).get("run_id", "")

    def note_run(self, run_id: str) -> None:
        """Remember that a run holds the batch, and that it is the newest of the home."""
        others = [path.name.removesuffix(".run.json") for path in self.folder.parent.glob("*.run.json")]
        numbers = [read_run_note(self.folder.with_name(name)).get("number", 0) for name in others]
        note = {"run_id": run_id, "number": 1 + max(numbers, default=0)}
        write_atomically(run_note_path(self.folder), sealed_bytes(note))


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A batch to compose: its model, settings and prompts, and the name that these determine.

    Args:
        config: with the kind of device that `auto` means, and the number of workers.
    """

    home: Home
    model: ModelVersion
    loaded: LoadedModel
    placement: Placement
    config: GenerateConfig
    prompts: list[Prompt]
    name: str


def read_request(home: Home, model: ModelVersion, checkpoint: Path, config: GenerateConfig) -> Request:
    """Load the model and read the prompts of a batch; raises as `load_model` and `read_prompts`."""
    config = replace(config, n_workers=n_workers_of(config))
    placement = place_here_or_on_ray("generate.", config.device, config.n_workers, config.gpus_per_worker)
    check_workers("generate.", placement)
    config = replace(config, device=placement.device)
    loaded = load_model(checkpoint, device_of(placement.own_device))
    prompts = read_prompts(loaded, config, home)
    settings = {key: value for key, value in to_json(config).items() if key not in NOT_IN_NAME}
    if config.batch_size == GenerateConfig().batch_size:  # earlier names, which it was no part of, stay
        del settings["batch_size"]
    identity = {
        "model": model.reference,
        "weights": loaded.weights_sha256,
        "config": settings,
        "prompts": [(p.name, p.sha256) for p in prompts],
    }
    if config.audio != "none":
        identity |= {"player": find_player(config.renderer, config.soundfont).identity}
    name = f"{model.name}-v{model.version}-{digest(identity)[:10]}"
    return Request(home, model, loaded, placement, config, prompts, name)


def find_batch(home: Home, name: str) -> Batch | None:
    """Return a finished batch, or None; DamagedFile where its manifest is damaged."""
    folder = home.generations / name
    try:
        return Batch(name, folder, read_manifest(folder / "manifest.json"))
    except FileNotFoundError:
        return None


def find_whole_batch(home: Home, name: str) -> Batch | None:
    """Return a finished batch with all files intact, or None; a damaged one is reported and made again."""
    try:
        batch = find_batch(home, name)
        if batch:
            check_batch(batch.folder, batch.manifest)
            read_sealed(batch.results, RESULTS)
    except (DamagedFile, FileNotFoundError) as error:
        problem = error if isinstance(error, DamagedFile) else f"{error.filename} is missing"
        logger.warning("%s; the batch is composed again", problem)
        return None
    return batch


def generate_batch(
    request: Request,
    fresh: bool = False,
    show: Callable[[str, int, str], Progress] = Progress,
) -> Batch:
    """Compose a batch and publish it in one step.

    A batch is cut into units of `batch_size` pieces: consecutive ones of the same attempt, sampled side by side in one
    call. The bytes of a unit depend on the model and its dataset, the settings, the prompts and the unit, on the same
    kind of processor and torch version. They do not depend on `n_workers`, on interruptions or on the order of units.
    An interrupted batch keeps the pieces that are written; the same call writes the others.

    Args:
        fresh: begin again even where some of it is written already.
        show: makes the progress of a stage, of its label, total and unit.
    Raises:
        ConfigError: other code began the batch, or its facts were others, and it is not `fresh`.
    """
    home, loaded, prompts, name = request.home, request.loaded, request.prompts, request.name
    config = with_room(request.config, prompts)
    player = find_player(config.renderer, config.soundfont)
    if config.musicxml:
        check_notation()
    if config.audio != "none" and player.problem:
        logger.warning("no audio: %s; the gallery's page plays the notes itself", player.problem)
    warn_of_losses(prompts, loaded.tokenizer)
    with Progress("reading the dataset"):
        judge = Judge.of(home, loaded, config)
    lineage = {
        "batch": name,
        "model_version": request.model.reference,
        "model_run_id": request.model.run_id,
        "dataset_version": "{name}@{version}".format(**loaded.state["dataset"]),
        "code_commit": git_commit(),
    }
    origin = lineage | {"code": code_digest(), "unjudged": judge.reason}
    origin |= {"player": player.identity if config.audio != "none" else {}}
    folder = open_unfinished(home, name, origin, fresh)
    sources = tuple(LatentSource(p.name, p.sha256, p.window, p.n_whole - len(p.window)) for p in prompts)
    plan = WritePlan(
        checkpoint=loaded.folder,
        prompts=tuple(prompts),
        latents=LatentPlan(latents_of(loaded.model, config), sources, config.n_pieces, config.variation),
        config=config,
        placement=request.placement,
        lineage=lineage,
        folder=folder,
        dataset_folder=judge.index.folder if judge.index else None,
        max_tokens=judge.max_tokens,
        chain=chain_shape(loaded, config) if config.chain_bars else None,
    )
    clock = Clock()
    with show("composing", sum(map(plan.expected_tokens, first_candidates(config))), "tokens") as progress:
        choices = choose_pieces(plan, judge, progress)
    clock.stop("writing")
    continuations = write_continuations(plan, [choice.candidate for choice in choices], loaded.tokenizer)
    with show("rendering", sum(choice.seconds for choice in choices), "seconds of music") as progress:
        scores = render_all(plan, choices, continuations, player, progress)
    clock.stop("rendering")
    with Progress("judging"):
        manifest = _write_manifest(plan, judge, choices, scores)
    clock.stop("judging")
    batch = Batch(name, home.generations / name, manifest)
    kept = [choice.candidate for choice in choices]
    rows = [{"piece": candidate.name} | read_candidate(candidate, folder)["measured"] for candidate in kept]
    results = results_of(rows) | {"stage_seconds": clock.seconds}
    if "path" in manifest:
        results["path"] = manifest["path"]
    write_atomically(batch.results, sealed_bytes(results))
    for left_by_a_kill in batch_folder(folder).rglob(".*.tmp"):
        left_by_a_kill.unlink()
    publish_folder(batch_folder(folder), batch.folder)
    shutil.rmtree(folder, ignore_errors=True)
    return batch


def open_unfinished(home: Home, name: str, origin: dict[str, Any], fresh: bool) -> Path:
    """Return the folder of an unfinished batch: that of an interrupted call, or an empty one.

    A folder is deleted where `fresh` is set, or where it has no whole note of its `origin`: the facts besides the name
    that decide the files.

    Raises:
        ConfigError: it was begun with another origin, and `fresh` is not set.
    """
    folder = home.generations / f".{name}.unfinished"
    note = folder / "told.json"
    try:
        begun = read_sealed(note)
    except (FileNotFoundError, DamagedFile):
        begun = {}
    if begun and not fresh:
        now = json.loads(json_bytes(origin))
        other = [fact.replace("_", " ") for fact in now if begun.get(fact) != now[fact]]
        if other:
            raise ConfigError(
                f"the unfinished batch {name} was begun with another {' and '.join(other)}, so its pieces could not be"
                " made the same; --fresh begins it again"
            )
    if folder.exists() and (fresh or not begun):
        logger.info("the unfinished batch in %s is deleted, to be begun again", folder)
        note.unlink(missing_ok=True)  # first: a batch must not continue from half a folder
        shutil.rmtree(folder)
    shutil.rmtree(folder / "partial", ignore_errors=True)  # of pieces that are begun anew
    for part in (folder / "candidates", pieces_folder(folder)):
        part.mkdir(parents=True, exist_ok=True)
    write_atomically(note, sealed_bytes(origin))
    return folder


def path_table(sidecars: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the distances of a batch's pieces, or of the windows of each, to both ends of the path of their latents.

    `steps_on_way` says of how many steps of all these is away from the start and towards the end, by latents and notes.
    """
    parts = [[{"piece": piece["name"], **row} for row in piece["latent"]["path"]] for piece in sidecars]
    is_chain = "chain" in sidecars[0]["latent"]
    walks = parts if is_chain else [[row for part in parts for row in part]]
    counts = {}
    for measure in ("latent", "notes"):
        found = [steps_on_way(walk, measure) for walk in walks]
        counts[measure] = [sum(n_right for n_right, _ in found), sum(n for _, n in found)]
    return {"rows": [row for walk in walks for row in walk], "steps_on_way": counts}


def _write_manifest(
    plan: WritePlan, judge: Judge, choices: Sequence[Choice], scores: Mapping[str, Score]
) -> dict[str, Any]:
    """Write the page and, last, the manifest of a batch; return the manifest. `scores` are of pieces just rendered."""
    target, config = batch_folder(plan.folder), plan.config
    sidecars = [check_piece(pieces_folder(plan.folder) / f"{choice.candidate.name}.json") for choice in choices]
    validities = [Validity(piece["validity"]["problems"]) for piece in sidecars]
    statistics = [piece["statistics"] for piece in sidecars]
    cut_before = {length for piece in sidecars for length in piece["short_of"]}
    cut_before |= {"end of the bars"} if any(map(is_cut_within_bars, sidecars)) else set()
    manifest = plan.lineage | {
        "config": to_json(config) | dict.fromkeys(NOT_IN_NAME),  # each sidecar has its prompt
        "n_pieces": len(sidecars),
        "n_nothing_new": sum(NOTHING_NEW in piece["flags"] for piece in sidecars),
        "n_cut_short": sum(CUT_SHORT in piece["flags"] for piece in sidecars),
        "cut_before": sorted(cut_before),
        "most_tokens": judge.max_tokens,
        "n_ended": sum(piece["ended"] for piece in sidecars),
        "n_attempts": sum(choice.n_attempts for choice in choices),
        "n_rejected_as_copies": sum(len(choice.rejected) for choice in choices),
        "pieces": [
            {"name": piece["name"], "midi_sha256": piece["midi_sha256"], "chosen_from": piece["chosen_from"]}
            | ({"new_bars": piece["infill"]["bars"]} if piece["infill"] else {})
            for piece in sidecars
        ],
        "statistics": {name: float(np.mean([part[name] for part in statistics])) for name in statistics[0]},
        "validity": share_valid(validities),
        **judge.verdict(sidecars),
    }
    if asked := _asked_notes(sidecars):
        manifest["asked_notes"] = asked
    if plan.latents.kind == "path":
        manifest["path"] = path_table(sidecars)
    manifest["flags"] = batch_flags(manifest)
    for line in manifest["flags"]:
        logger.warning("%s", line)
    page = batch_page(judge, pieces_folder(plan.folder), sidecars, manifest, scores)
    write_atomically(target / "gallery.html", page.encode())
    write_atomically(target / "manifest.json", sealed_bytes(manifest))
    return manifest


def _asked_notes(sidecars: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of notes that a text's header asked for and those of the pieces; nothing where none asked."""
    asked = [(piece["prompt"] or {}).get("asked_notes", 0) for piece in sidecars]
    if not any(asked):
        return {}
    return {"asked": asked[0], "got": [int(piece["statistics"]["n_notes"]) for piece in sidecars]}
