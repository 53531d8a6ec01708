"""The files of a batch: their expected shapes, and checks of their bytes."""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError, DamagedFile, plural
from tasks.storage.home import Home
from tasks.storage.integrity import OTHER_BYTES, examine, read_sealed, warn_once
from tasks.storage.user_paths import check_output_folder, write_output_folder

_LINEAGE = dict.fromkeys(("batch", "model_version", "model_run_id", "dataset_version", "code_commit"), str)
_FIGURE = (float, None)
MANIFEST: dict[str, Any] = _LINEAGE | {
    "config": {"sampling": dict, "seed": int},
    "n_pieces": int,
    "n_ended": int,
    "n_attempts": int,
    "n_nothing_new": int,
    "n_cut_short?": int,
    "pieces": [{"name": str, "midi_sha256": str}],
    "statistics": {str: _FIGURE},
    "validity": {"share_valid": _FIGURE},
    "judgement": (None, {"fd_feat": {"value": _FIGURE}, "typicality": {"generated": {"value": _FIGURE}}}),
    "copying": (None, {"n_judged": int, "share_beyond": _FIGURE}),
    "unjudged": str,
    "flags": [str],
}
SIDECAR: dict[str, Any] = _LINEAGE | {
    "name": str,
    "midi_sha256": str,
    "files?": {str: str},  # SHA-256 of the other files of the piece, by suffix; one from before seals lacks it
    "continuation?": (None, {str: str}),  # SHA-256 of what is in its folder below `CONTINUATIONS`, by name
    "seed": int,
    "attempt": int,
    "prompt": (None, {"name": str}),
    "copying": (None, {"match": (None, dict)}),
    "statistics": {"n_notes": float},
    "flags": [str],
    "warnings": [str],
}
RESULTS: dict[str, Any] = {"mean_entropy": _FIGURE, "mean_generation_time": _FIGURE, "pieces": [dict]}
RUN_NOTE: dict[str, Any] = {"run_id": str, "number?": int}

CONTINUATIONS = "continuations"  # a folder for each piece of a batch that continues a prompt

_BATCH, _PIECE = re.compile(r"[^/\0.][^/\0]{0,250}"), re.compile(r"[0-9]{4,12}")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a batch; FileNotFoundError or DamagedFile where there is none or it is damaged."""
    manifest = read_sealed(path, MANIFEST)
    _require_name(path, manifest["batch"], _BATCH)
    for piece in manifest["pieces"]:
        _require_name(path, piece["name"], _PIECE)
    return manifest


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the sidecar of a piece; errors as in `read_manifest`."""
    sidecar = read_sealed(path, SIDECAR)
    _require_name(path, sidecar["batch"], _BATCH)
    _require_name(path, sidecar["name"], _PIECE)
    return sidecar


def _require_name(path: Path, name: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(name):
        raise DamagedFile(f"{path} is damaged: it names {name[:100]!r}")


def asked_words(manifest: Mapping[str, Any]) -> str:
    """Return how near the pieces of a batch are to the number of notes asked for, empty where none was."""
    if "asked_notes" not in manifest:
        return ""
    asked, got = manifest["asked_notes"]["asked"], sorted(manifest["asked_notes"]["got"])
    span = f"{got[0]}" if got[0] == got[-1] else f"{got[0]} to {got[-1]}"
    off = sum(abs(n - asked) for n in got) / len(got)
    return f"{plural(asked, 'note')} asked for, {span} written, {off:.3g} off on average"


def list_manifests(home: Home) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder and the manifest of each batch, by name; one that is damaged is left out with a warning."""
    for path in sorted(home.generations.glob("[!.]*/manifest.json")):
        try:
            yield path.parent, read_manifest(path)
        except DamagedFile as error:
            warn_once(f"{error}; the batch is left out")


def check_piece(sidecar: Path) -> dict[str, Any]:
    """Check all files of a piece and return its sidecar; DamagedFile names one that is missing or has other bytes."""
    try:
        facts = read_sidecar(sidecar)
    except FileNotFoundError:
        raise DamagedFile(f"{sidecar} is missing") from None
    for suffix, digest in ({"mid": facts["midi_sha256"]} | facts.get("files", {})).items():
        path = sidecar.with_name(f"{sidecar.stem}.{suffix}")
        if path.parent != sidecar.parent:
            raise DamagedFile(f"{sidecar} is damaged: it names {suffix[:100]!r}")
        check_file(path, digest)
    folder = sidecar.parent.with_name(CONTINUATIONS) / sidecar.stem
    for name, digest in (facts.get("continuation") or {}).items():
        if (folder / name).parent != folder:
            raise DamagedFile(f"{sidecar} is damaged: it names {name[:100]!r}")
        check_file(folder / name, digest)
    return facts


def check_file(path: Path, digest: str) -> None:
    """Compare all bytes of a file with a SHA-256; errors as in `check_piece`."""
    try:
        found = examine(path).sha256
    except FileNotFoundError:
        raise DamagedFile(f"{path} is missing") from None
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from None
    if found != digest:
        raise DamagedFile(f"{path} is damaged: {OTHER_BYTES}")


def check_batch(folder: Path, manifest: dict[str, Any]) -> None:
    """Check the files of all pieces of a batch; errors as in `check_piece`."""
    for piece in manifest["pieces"]:
        sidecar = folder / "pieces" / f"{piece['name']}.json"
        if check_piece(sidecar)["midi_sha256"] != piece["midi_sha256"]:
            raise DamagedFile(f"{sidecar} is damaged: it is of another piece than the manifest names")


def check_copy_target(out: Path) -> None:
    """Raise ConfigError where a batch cannot be copied to a folder, or the folder holds anything but a batch."""
    check_output_folder(out)
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise ConfigError(f"folder {out} is not empty and holds no batch; name another folder")


def copy_batch(folder: Path, results: Path, out: Path) -> None:
    """Copy a batch to a folder, with its results as `results.json`; a copy of the same batch there is replaced.

    Raises:
        ConfigError: see `check_copy_target`; or the folder holds another batch.
    """
    check_copy_target(out)
    if (out / "manifest.json").exists():
        try:
            held = read_manifest(out / "manifest.json")["batch"]
        except DamagedFile as error:
            raise ConfigError(f"folder {out} holds something that is no whole batch ({error}); name another") from None
        if held != folder.name:
            raise ConfigError(f"folder {out} holds batch {held}, not {folder.name}; name another folder")

    def fill(target: Path) -> None:
        shutil.copytree(folder, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
        shutil.copyfile(results, target / "results.json")

    write_output_folder(out, fill)


def run_note_path(folder: Path) -> Path:
    """Return the file that names a batch's run in the tracker."""
    return folder.with_name(f"{folder.name}.run.json")


def read_run_note(folder: Path) -> dict[str, Any]:
    """Return the run of a batch in the tracker, and the batch's number; nothing where they are unknown.

    Batches of a home are numbered in the order of their making: the newest is found without a clock.
    """
    try:
        return read_sealed(run_note_path(folder), RUN_NOTE)
    except FileNotFoundError:
        return {}
    except DamagedFile as error:
        warn_once(f"{error}; the batch is logged again")
        return {}
