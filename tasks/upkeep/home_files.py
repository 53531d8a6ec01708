"""The kinds of files in a home that are read back: how each is checked, and how an older one gets a seal.

`docs/operations.md` has the same table in words. Dataset versions are checked by `tasks.dataset.upkeep`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import checkpoints
from tasks.composer.sessions import SessionFolder
from tasks.copying import store
from tasks.dataset import token_cache
from tasks.dataset.versions import LATEST
from tasks.errors import DamagedFile, OrchestrionError
from tasks.generation import batch_files
from tasks.ingest.sources.downloads import KNOWN
from tasks.storage.databases import check_database
from tasks.storage.files import write_atomically
from tasks.storage.home import Home
from tasks.storage.integrity import SEAL, examine, parse_sealed, read_sealed, sealed_bytes
from tasks.storage.strict_json import Shape, parse_json, read_json
from tasks.sweep import space
from tasks.tracking.mlflow_tracker import NATS
from tasks.training import runs
from tasks.training.metrics_log import POINT, point_line

Check = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file.

    Args:
        pattern: of its places below the home.
        check: raises OrchestrionError, which names the file, if it is damaged.
        is_sealed: returns whether it carries digests.
        seal: gives digests to a whole file without any; None where `check` or the next use makes it again.
    """

    name: str
    pattern: str
    check: Check
    is_sealed: Callable[[Path], bool]
    seal: Check | None


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one file: a problem, or that it cannot be verified."""

    path: Path
    problem: str = ""
    is_unverified: bool = False
    got_seal: bool = False


def kinds() -> list[Kind]:
    """Return all kinds except the files of dataset versions."""
    checkpoint = (
        lambda path: checkpoints.check_checkpoint(path.parent),
        _has_files,
        lambda path: checkpoints.seal_state(path.parent),
    )
    return [
        _json("newest versions", "datasets/*/latest.json", LATEST),
        _json("what people copy", "datasets/*/versions/[!.]*/copying-*.json", dict),
        Kind("indexes of copies", "datasets/*/versions/[!.]*/copying-*.index", _check_index, _has_header, _drop),
        _json("runs", "runs/*/run.json", runs.RUN),
        Kind("curves", "runs/*/metrics.jsonl", _read_points, _are_points_sealed, _seal_points),
        _json("last checkpoints", "runs/*/checkpoints/last.json", {"checkpoint": str}),
        _json("best checkpoints", "runs/*/checkpoints/best*.json", {"checkpoint": str}),
        Kind("checkpoints", "runs/*/checkpoints/step-*/state.json", *checkpoint),
        Kind("registered models", "mlflow/artifacts/*/models/*/artifacts/state.json", *checkpoint),
        _json("scores of pieces", "mlflow/artifacts/orchestrion-evaluation/*/artifacts/pieces.json", NATS),
        _json("sweeps", "sweeps/*/sweep.json", {"run_id": str}),
        _json("results of sweeps", "sweeps/*/results.json", {"rows": [space.ROW]}),
        Kind("pieces", "generations/[!.]*/pieces/*.json", batch_files.check_piece, _has_files, _seal_piece),
        Kind("batches", "generations/[!.]*/manifest.json", _check_batch, _has_seal, _seal_json(batch_files.MANIFEST)),
        _json("results of batches", "generations/*.results.json", batch_files.RESULTS),
        _json("runs of batches", "generations/*.run.json", batch_files.RUN_NOTE),
        Kind("sessions", "sessions/*/session.json", _check_session, _has_seal, _seal_json(dict)),
        Kind("flat tokens", "cache/tokens/*.tokens", token_cache.check_flat, _has_header, _drop),
        Kind("what scans found", "cache/*/*.parquet", _check_table, lambda path: examine(path).has_seal, _drop),
        Kind("what was downloaded", "cache/downloads/*.json", _check_download, _has_seal, _drop),
        Kind("the tracker's database", "mlflow/mlflow.db", _check_database, lambda path: True, None),
        Kind("Prefect's database", "prefect/prefect.db", _check_database, lambda path: True, None),
    ]


def check_files(home: Home, seal: bool = False, on_files: Callable[[int], None] | None = None) -> list[Finding]:
    """Check every file of a home but those of its dataset versions; with `seal`, give digests to files without."""
    findings = []
    for kind, path in list(_files(home)):
        if path.exists():  # still: a temporary file may be gone
            findings.append(_look(kind, path, seal))
            if on_files:
                on_files(1)
    return findings


def n_files(home: Home) -> int:
    """Return how many files `check_files` looks at."""
    return sum(1 for _ in _files(home))


def _files(home: Home) -> Iterator[tuple[Kind, Path]]:
    for kind in kinds():
        for path in sorted(home.root.glob(kind.pattern)):
            if path.is_file():
                yield kind, path


def _look(kind: Kind, path: Path, seal: bool) -> Finding:
    try:
        is_sealed = kind.is_sealed(path)
        if is_sealed or kind.seal is not _drop:
            kind.check(path)
        if not is_sealed and seal and kind.seal:
            kind.seal(path)
            return Finding(path, got_seal=True)
    except OrchestrionError as error:
        return Finding(path, str(error))
    except (OSError, ValueError) as error:
        return Finding(path, f"{path} is damaged: {(str(error).splitlines() or [''])[0]}")
    return Finding(path, is_unverified=not is_sealed)


# --- JSON


def _json(name: str, pattern: str, shape: Shape) -> Kind:
    return Kind(name, pattern, lambda path: read_sealed(path, shape), _has_seal, _seal_json(shape))


def _has_seal(path: Path) -> bool:
    value = read_json(path)
    return isinstance(value, dict) and SEAL in value


def _seal_json(shape: Shape) -> Check:
    return lambda path: write_atomically(path, sealed_bytes(read_sealed(path, shape)))


def _lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n") if line]


def _read_points(path: Path) -> list[dict[str, Any]]:
    return [parse_sealed(line, path, POINT) for line in _lines(path)]


def _are_points_sealed(path: Path) -> bool:
    return all(isinstance(value := parse_json(line), dict) and SEAL in value for line in _lines(path))


def _seal_points(path: Path) -> None:
    write_atomically(path, "".join(map(point_line, _read_points(path))).encode())


def _check_session(path: Path) -> None:
    SessionFolder(Home(path.parents[2]), path.parent.name).read()


# --- batches


def _has_files(path: Path) -> bool:
    return "files" in read_json(path)


def _seal_piece(path: Path) -> None:
    others = [other for other in path.parent.glob(f"{path.stem}.*") if other.suffix not in (".mid", ".json")]
    files = {other.suffix.removeprefix("."): examine(other).sha256 for other in sorted(others)}
    write_atomically(path, sealed_bytes(batch_files.read_sidecar(path) | {"files": files}))


def _check_batch(path: Path) -> None:
    batch_files.check_batch(path.parent, batch_files.read_manifest(path))


# --- files that are made again


def _check_index(path: Path) -> None:
    if store.map_index(path) is None:
        raise DamagedFile(f"{path} is damaged; the next batch makes it again")


def _has_header(path: Path) -> bool:
    with path.open("rb") as handle:
        head = handle.read(4096)
    try:
        return SEAL in json.loads(head)
    except ValueError:
        return True  # damaged, which its check reports


def _check_table(path: Path) -> None:
    if not examine(path).fits:
        raise DamagedFile(f"{path} is damaged; it is made again by the next scan")


def _check_download(path: Path) -> None:
    """Check the facts about a download, and the file beside them."""
    known = read_sealed(path, {"known?": KNOWN, "identity?": list}).get("known", {})
    file = path.with_name(path.name.removesuffix(".json"))
    if known.get("sha256") and file.exists() and examine(file).sha256 != known["sha256"]:
        raise DamagedFile(f"{file} is damaged: delete it, and the next scan fetches it again")


def _drop(path: Path) -> None:
    path.unlink()


def _check_database(path: Path) -> None:
    check_database(path, "what it knew", thorough=True)
