"""Sessions of the composer on disk: `<home>/sessions/<name>/` with state, proposal and saved pieces.

Each step reads the state and, at its end, writes it as a whole; a second command on the same session is refused
until then.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from models.config import SamplingConfig
from tasks.composer import blocks
from tasks.composer.blocks import Block, ComposerConfig, Event, ModelFacts, Primer, PrimerKind, Session
from tasks.config.serialization import digest, from_json, to_json
from tasks.errors import CheckpointError, ConfigError, DatasetError, NotFound, OrchestrionError
from tasks.music.edits import added_notes
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score
from tasks.music.tokenizers.base import Tokenizer
from tasks.music.tokenizers.note_boundaries import beginning_of, random_ids, without_ending
from tasks.music.tokenizers.registry import tokenizer_from_json, writes_names
from tasks.runtime.devices import explained_memory, place
from tasks.storage.files import json_bytes, write_atomically
from tasks.storage.home import Home
from tasks.storage.integrity import read_sealed, sealed_bytes
from tasks.storage.user_paths import read_input

if TYPE_CHECKING:
    from tasks.checkpoints import LoadedModel
    from tasks.generation.prompts import Prompt
    from tasks.tracking.mlflow_tracker import ModelVersion

PRIME_TOKENS = 256
LESS_MEMORY = "lower --context-tokens, or set --device cpu"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PRIMER_STREAM = 2**64 - 1  # no block has this number


def sessions_folder(home: Home) -> Path:
    """Return the folder of all sessions."""
    return home.root / "sessions"


def list_sessions(home: Home) -> list[str]:
    """Return the names of all sessions, in order."""
    return sorted(path.parent.name for path in sessions_folder(home).glob("*/session.json"))


@contextmanager
def locked_session(home: Home, name: str, purpose: str, create: bool = False) -> Iterator["SessionFolder"]:
    """Hold one session for a command that writes to it; a start that fails leaves nothing.

    Args:
        purpose: the command, for the message to others that find the session busy.
        create: the command may begin the session.
    Raises:
        ConfigError: the name is not one of a session.
        NotFound: there is no such session, and the command may not begin it.
        HomeError: another command holds the session.
    """
    session = SessionFolder(home, name)
    if not create:
        session.require()
    is_there = session.folder.exists()
    home.prepare()
    try:
        with Home(session.folder).locked(purpose):
            yield session
    except BaseException:
        if not is_there and not session.state_path.exists():
            shutil.rmtree(session.folder, ignore_errors=True)
        raise


def name_of_request(model: "ModelVersion", config: ComposerConfig, prompt: str, prime_tokens: int | None) -> str:
    """Return the name of the session that belongs to a request for blocks; the same request goes on with it.

    Args:
        prompt, prime_tokens: as for `SessionFolder.start`.
    """
    sha256 = hashlib.sha256(read_input(Path(prompt))).hexdigest() if prompt else ""
    identity = {"model": model.reference, "config": to_json(config), "prompt": sha256, "prime_tokens": prime_tokens}
    return f"blocks-{digest(identity)[:12]}"


def on_its_device(config: ComposerConfig) -> ComposerConfig:
    """Return the settings with the kind of device that `auto` means here; ConfigError where it is not there."""
    return replace(config, device=place("--", config.device, on_ray=False).device)


class SessionFolder:
    """A session's folder; its model is loaded once for all steps."""

    def __init__(self, home: Home, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"session name {name!r} is not up to 64 letters, digits, dots, dashes and underscores")
        self.home, self.name = home, name
        self.folder = sessions_folder(home) / name
        self.state_path, self.proposal_path = self.folder / "session.json", self.folder / "proposal.mid"
        self.block_path = self.folder / "block.mid"
        self._tokenizer: Tokenizer | None = None
        self._loaded: LoadedModel | None = None

    def require(self) -> None:
        """Raise NotFound where there is no such session."""
        if not self.state_path.exists():
            known = ", ".join(list_sessions(self.home)) or "none yet"
            raise NotFound(f"no session {self.name!r} in {sessions_folder(self.home)}; known: {known}")

    def read(self) -> Session:
        """Return the session as the last step left it; NotFound without one, OrchestrionError if it is damaged."""
        self.require()
        try:
            values = read_sealed(self.state_path)
            if values.get("format") != blocks.FORMAT:
                raise OrchestrionError(f"{self.state_path} is not of session format {blocks.FORMAT}")
            _fill_in(values)
            session = from_json(Session, values, str(self.state_path))
            self._check(session)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
            if isinstance(error, OrchestrionError) and str(self.state_path) in str(error):
                raise
            lines = str(error).splitlines() or [type(error).__name__]
            raise OrchestrionError(f"{self.state_path} is damaged: {lines[0]}") from None
        return session

    def _check(self, session: Session) -> None:
        tokenizer = self.tokenizer_of(session)
        proposed = session.proposal.ids if session.proposal else ()
        forbidden = tokenizer.grammar.first_violation([*session.ids, *proposed])
        if forbidden is not None:
            raise ValueError(f"id {forbidden} of the piece is forbidden in encoding {tokenizer.name}")
        if any(not block.ids for block in (*session.blocks, session.proposal) if block):
            raise ValueError("a block without ids")
        checkpoint = PurePosixPath(session.model.checkpoint)
        if checkpoint.is_absolute() or ".." in checkpoint.parts:
            raise ValueError(f"its checkpoint {session.model.checkpoint!r} is outside of the home")

    def write(self, session: Session) -> Session:
        """Replace the state of the session in one step."""
        write_atomically(self.state_path, sealed_bytes(to_json(session)))
        return session

    def tokenizer_of(self, session: Session) -> Tokenizer:
        """Return the session's tokenizer, without its model."""
        self._tokenizer = self._tokenizer or tokenizer_from_json(session.encoding)
        return self._tokenizer

    @property
    def loaded(self) -> "LoadedModel":
        """The session's model, from its checkpoint or from the registry's copy.

        NotFound where neither exists, CheckpointError where the weights have changed.
        """
        from tasks.checkpoints import load_model

        if self._loaded:
            return self._loaded
        session = self.read()
        checkpoint = self.home.root / session.model.checkpoint
        if not (checkpoint / "state.json").exists():
            from tasks.tracking.mlflow_tracker import Tracker

            tracker = Tracker(self.home)
            checkpoint = tracker.fetch(tracker.model(session.model.reference))
        loaded = load_model(checkpoint)
        if loaded.weights_sha256 != session.model.weights_sha256:
            raise CheckpointError(f"{checkpoint} does not hold the weights that session {self.name} began with")
        self._loaded = loaded
        return loaded

    def start(
        self,
        model: "ModelVersion",
        checkpoint: Path,
        config: ComposerConfig,
        prime: PrimerKind = "start",
        prompt: str = "",
        prime_tokens: int | None = None,
    ) -> Session:
        """Begin a session with a model and the beginning of its piece.

        Args:
            prompt: a MIDI file to continue, for `prime` "midi".
            prime_tokens: largest length of the beginning, where notes can be ended at any place. None: all of a file,
                `PRIME_TOKENS` of the others.
        Raises:
            ConfigError: there is a session of that name, or the model cannot continue ids.
            NotFound, BadScore, DatasetError: the prompt or the dataset cannot be used.
        """
        from tasks.checkpoints import load_model
        from tasks.sampling.sample_ids import require_music

        if self.state_path.exists():
            raise ConfigError(f"session {self.name!r} exists already, in {self.folder}; give another name")
        config, loaded = on_its_device(config), load_model(checkpoint)
        require_music(loaded)
        if loaded.model.config.has_latents:
            raise ConfigError(
                f"model {model.reference} is a {loaded.model.config.name}, which writes whole pieces from latents;"
                " a session needs a model that continues ids"
            )
        try:
            config.sampling(1, loaded.model.max_length)
        except ValueError as error:
            raise ConfigError(f"the model takes {loaded.model.max_length} tokens: {error}") from None
        primer = make_primer(self.home, loaded, prime, prompt, prime_tokens, config.seed)
        session = Session(
            name=self.name,
            model=ModelFacts(
                reference=model.reference,
                run_id=model.run_id,
                dataset="{name}@{version}".format(**loaded.state["dataset"]),
                checkpoint=str(model.checkpoint),
                weights_sha256=loaded.weights_sha256,
            ),
            encoding=loaded.tokenizer.to_json(),
            config=config,
            primer=primer,
            history=(Event(step="start", n_tokens=len(primer.ids)),),
        )
        self._loaded = loaded
        return self.write(session)

    def propose(self, config: ComposerConfig | None = None) -> Session:
        """Make a proposal and write it as MIDI: the piece with it, and the block alone."""
        session = self.read()
        session = self._write_block(session, config or session.config)
        assert session.proposal
        tokenizer = self.tokenizer_of(session)
        before = tokenizer.decode(np.array(session.ids))
        after = tokenizer.decode(np.array([*session.ids, *session.proposal.ids]))
        self._drop_midi()  # first: the files never show another proposal than the state, even after a kill
        self.write(session)
        write_atomically(self.proposal_path, write_midi(after, self.name))
        write_atomically(self.block_path, write_midi(added_notes(before, after), f"{self.name} block"))
        return session

    def grow(self, n_blocks: int, on_block: Callable[[Session], None]) -> Session:
        """Add blocks in sequence; each is stored before `on_block` is called, so a kill loses none of those.

        The model does not end the piece. Memory grows by the ids alone.
        """
        session = self.read()
        self._drop_midi()
        for _ in range(n_blocks):
            session = self.write(blocks.accept(self._write_block(session, session.config, may_end=False)))
            on_block(session)
        return session

    def _write_block(self, session: Session, config: ComposerConfig, may_end: bool = True) -> Session:
        config = on_its_device(config)
        with explained_memory(LESS_MEMORY):
            self.loaded.model.to(config.device)
            return blocks.propose(session, self.loaded, config, may_end)

    def accept(self) -> Session:
        """Make the proposal part of the piece."""
        session = blocks.accept(self.read())
        self._drop_midi()
        return self.write(session)

    def undo(self) -> Session:
        """Remove the last block."""
        session = blocks.undo(self.read())
        self._drop_midi()
        return self.write(session)

    def _drop_midi(self) -> None:
        for path in (self.proposal_path, self.block_path):
            path.unlink(missing_ok=True)

    def save(self, out: Path | None = None) -> dict[str, Any]:
        """Write the piece as MIDI, and its origin as JSON beside it; the same piece gives the same bytes.

        Returns the contents of the JSON file, and `path`. ConfigError where `out` is no MIDI name, or not writable.
        """
        from tasks.music.midi.event_statistics import midi_statistics
        from tasks.storage.file_names import MIDI_SUFFIXES
        from tasks.storage.project import git_commit
        from tasks.storage.user_paths import check_output, is_regular_output, write_output

        path = self.folder / "piece.mid" if out is None else out
        check_output(path)
        has_sidecar = is_regular_output(path)  # nothing stands beside a device or a pipe
        if has_sidecar:
            if path.suffix.lower() not in MIDI_SUFFIXES:
                raise ConfigError(f"{path} is not named as one of {' '.join(MIDI_SUFFIXES)}")
            check_output(path.with_suffix(".json"))
        own = (self.state_path, self.proposal_path, self.block_path)
        if {path.resolve(), path.with_suffix(".json").resolve()} & {kept.resolve() for kept in own}:
            raise ConfigError(f"{path} would overwrite the session's own files; give another name")
        session = self.read()
        midi = write_midi(self._score(session), self.name)
        sidecar = self._facts(session) | {
            "model_run_id": session.model.run_id,
            "weights_sha256": session.model.weights_sha256,
            "code_commit": git_commit(),
            "midi_sha256": hashlib.sha256(midi).hexdigest(),
            "midi_statistics": midi_statistics(midi),
        }
        write_output(path, midi)
        if has_sidecar:
            write_output(path.with_suffix(".json"), json_bytes(sidecar))
        return sidecar | {"path": str(path)}

    def describe(self, session: Session) -> dict[str, Any]:
        """Return the output of the commands: the piece, its blocks and the proposal."""
        pending = None
        if session.proposal:
            ids = [*session.ids, *session.proposal.ids]
            tokenizer = self.tokenizer_of(session)
            pending = _facts_of(session.proposal) | {
                "seconds": _seconds(tokenizer.decode(np.array(ids))),
                "ends": bool(ids[-1] == tokenizer.end_id),
                "midi": str(self.proposal_path),
                "block_midi": str(self.block_path),
            }
        return self._facts(session) | {"pending": pending, "n_steps": len(session.history), "folder": str(self.folder)}

    def _facts(self, session: Session) -> dict[str, Any]:
        from tasks.music.metrics.piece_metrics import piece_statistics

        score = self._score(session)
        return {
            "session": self.name,
            "model_version": session.model.reference,
            "dataset_version": session.model.dataset,
            "encoding": session.encoding["name"],
            "seed": session.config.seed,
            "config": to_json(session.config),
            "primer": _facts_of(session.primer),
            "blocks": [_facts_of(block) for block in session.blocks],
            "n_tokens": len(session.ids),
            "n_notes": len(score.notes.pitch),
            "seconds": _seconds(score),
            "ended": session.is_ended(self.tokenizer_of(session).end_id),
            "statistics": piece_statistics(score),
        }

    def _score(self, session: Session) -> Score:
        return self.tokenizer_of(session).decode(np.array(session.ids))


def _fill_in(values: dict[str, Any]) -> None:
    """Complete the settings of a session of an older release, so that it continues as it began."""
    blocks = values.get("blocks")
    for part in (values, values.get("proposal"), *(blocks if isinstance(blocks, list) else ())):
        config = part.get("config") if isinstance(part, dict) else None
        if isinstance(config, dict):
            config.setdefault("min_new_tokens", 0)
            config.setdefault("device", "cpu")


def _facts_of(part: Primer | Block) -> dict[str, Any]:
    return {key: value for key, value in to_json(part).items() if key != "ids"} | {"n_tokens": len(part.ids)}


def _seconds(score: Score) -> float:
    return round(float(score.notes.end_seconds.max(initial=0.0)), 3)


def make_primer(
    home: Home, loaded: "LoadedModel", kind: PrimerKind, prompt: str, n_tokens: int | None, seed: int
) -> Primer:
    """Return the beginning of a piece; it is `<start>` alone, or ends on a note boundary.

    Args:
        kind: "start" is `<start>` alone; "midi" a file or its beginning; "dataset" the beginning of a piece of the
            model's training split; "random" a random walk through the encoding's grammar.
        prompt: the file, for "midi".
        n_tokens: see `SessionFolder.start`; a random walk continues to the next note boundary.
        seed: draws the piece or the walk.
    """
    tokenizer = loaded.tokenizer
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, _PRIMER_STREAM], np.uint64)))
    file = dict[str, Any]()
    if kind == "midi":
        read = _read_prompt(loaded, prompt)
        file = {"name": read.name, "sha256": read.sha256, "n_file_notes": read.n_notes, "dropped": read.dropped}
        ids = read.ids if n_tokens is None else beginning_of(tokenizer.grammar, read.ids, n_tokens, tokenizer.end_id)
    elif kind == "dataset":
        file["name"], ids = _excerpt(home, loaded, rng, n_tokens or PRIME_TOKENS)
    elif kind == "random":
        n_ids, first = n_tokens or PRIME_TOKENS, tokenizer.header_ids if writes_names(tokenizer.config) else ()
        ids = random_ids(tokenizer.grammar, rng, n_ids, tokenizer.end_id, tokenizer.pad_id, first)
    else:
        ids = [tokenizer.start_id]
    ids = without_ending(tokenizer.grammar, ids, tokenizer.end_id, tokenizer.pad_id)
    return Primer(kind=kind, n_notes=blocks.count_notes(tokenizer, ids), ids=tuple(ids), **file)


def _read_prompt(loaded: "LoadedModel", prompt: str) -> "Prompt":
    from tasks.config.generation import GenerateConfig
    from tasks.generation.prompts import read_prompts

    if Path(prompt).is_dir():
        raise ConfigError(f"prompt {prompt} is a folder; a session continues one file")
    everything = 2**62
    sampling = SamplingConfig(max_tokens=everything + 1)
    (read,) = read_prompts(loaded, GenerateConfig(prompt=prompt, prompt_tokens=everything, sampling=sampling))
    return read


def _excerpt(home: Home, loaded: "LoadedModel", rng: np.random.Generator, n_tokens: int) -> tuple[str, Sequence[int]]:
    """Return the name and the first ids of a piece of the training split."""
    from tasks.dataset.token_cache import flat_tokens
    from tasks.dataset.versions import resolve_dataset

    reference = "{name}@{version}".format(**loaded.state["dataset"])
    dataset = resolve_dataset(home, reference)
    flat = flat_tokens(dataset.token_shards("train"), dataset.flat_tokens)
    if dataset.manifest["encoder"]["digest"] != loaded.tokenizer.digest:
        raise DatasetError(f"dataset {reference} is not in the encoding of the model")
    row = int(rng.integers(len(flat.offsets) - 1))
    ids = flat.tokens[flat.offsets[row] : flat.offsets[row + 1]].tolist()
    ids = beginning_of(loaded.tokenizer.grammar, ids, n_tokens, loaded.tokenizer.end_id)
    return f"{reference} train row {row}", ids
