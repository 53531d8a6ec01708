"""Sessions: blocks end between notes, undo gives the same ids back, prompts stay note for note."""

import json
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.config import DecoderConfig, HourglassConfig, OptimizerConfig, VaeConfig
from models.registry import build_model
from models.training import build_optimizer
from tasks.checkpoints import CheckpointFolder, load_model
from tasks.composer import blocks
from tasks.composer.blocks import ComposerConfig, Session
from tasks.composer.sessions import SessionFolder, list_sessions, locked_session, make_primer
from tasks.config.serialization import to_json
from tasks.errors import BadScore, CheckpointError, ConfigError, HomeError, NotFound, OrchestrionError
from tasks.music.midi.event_statistics import midi_statistics
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tasks.music.tokenizers.note_boundaries import beginning_of, boundary_places
from tasks.music.tokenizers.oore import OoreConfig
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntConfig
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtConfig
from tasks.music.tokenizers.registry import build_tokenizer, needs_vocabulary, symbols_in
from tasks.music.tokenizers.remi.vocabulary import RemiConfig
from tasks.storage.home import Home
from tasks.storage.integrity import SEAL
from tasks.tracking.mlflow_tracker import ModelVersion
from tests.builders import make_score
from tests.samples import short_training, small_corpus, small_dataset, small_model

pytestmark = pytest.mark.slow  # seconds a test; see `make check`

ENCODINGS = [OoreConfig(), OptimusTxtConfig(), OptimusIntConfig(instruments=True), RemiConfig(), MmmConfig()]
TINY = DecoderConfig(d_model=16, n_heads=2, n_layers=1, d_ff=16, dropout=0.0, max_relative_distance=16)
PROMPT_NOTES = [(0, 480, 60, 64), (480, 480, 64, 72), (480, 960, 67, 80), (1440, 560, 72, 88)]  # C4 E4 G4 C5
CONFIG = ComposerConfig(seed=7, block_tokens=24)


def learned(encoding: Any) -> Any:
    """Return an encoding that can write the prompt and some other lengths."""
    if not needs_vocabulary(encoding):
        return encoding
    rows = [(500 * i, 80 + 40 * (i % 30), 40 + i % 50, 80) for i in range(60)]
    batch = NoteBatch.joined([score.notes for score in [make_score(PROMPT_NOTES), make_score(rows)]])
    return encoding.with_symbols(symbols_in(encoding, batch))


def random_checkpoint(root: Path, encoding: Any, model_config: Any = TINY, seed: int = 0) -> Path:
    """Save a model that has learned nothing."""
    tokenizer = build_tokenizer(learned(encoding))
    torch.manual_seed(seed)
    model = build_model(model_config, tokenizer.vocab_size, tokenizer.pad_id)
    config = to_json(short_training(model=TINY))
    config["model"] = to_json(model_config)
    state = {
        "step": 0, "best_loss": 1.0, "metrics": {}, "config": config,
        "dataset": {"name": "small", "version": "0123456789abcdef"}, "tokenizer": tokenizer.to_json(),
        "n_parameters": 1,
    }  # fmt: skip
    optimizer = build_optimizer(OptimizerConfig(), model)
    return CheckpointFolder(root / "runs" / "r" / "checkpoints").save(model, optimizer, state, ["best"], 0)


def version_of(home: Home, checkpoint: Path) -> ModelVersion:
    return ModelVersion(
        name="small-small", version="1", run_id="0123456789abcdef", checkpoint=checkpoint.relative_to(home.root),
        dataset="small@0123456789abcdef", preset="small", model_id="m-1",
    )  # fmt: skip


def begin(home: Home, checkpoint: Path, config: ComposerConfig = CONFIG, name: str = "tune", **start: Any) -> Any:
    session = SessionFolder(home, name)
    session.start(version_of(home, checkpoint), checkpoint, config, **start)
    return session


def write_prompt(folder: Path) -> str:
    path = folder / "theme.mid"
    path.write_bytes(write_midi(make_score(PROMPT_NOTES)))
    return str(path)


def notes_of(score: Score) -> Counter[tuple[int, ...]]:
    names = ("onset", "duration", "pitch", "velocity", "program", "is_drum")
    return Counter(zip(*(getattr(score.notes, name).tolist() for name in names), strict=True))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda config: config.name)
def test_a_session_in_each_encoding(home: Home, tmp_path: Path, encoding: Any) -> None:
    checkpoint = random_checkpoint(home.root, encoding)
    session = begin(home, checkpoint, prime="midi", prompt=write_prompt(tmp_path))
    tokenizer = load_model(checkpoint).tokenizer
    states = [session.read()]
    for _ in range(3):
        proposed = session.propose()
        assert proposed.ids == states[-1].ids
        states.append(session.accept())
        block = states[-1].blocks[-1]
        ids = states[-1].ids
        assert ids == [*states[-2].ids, *block.ids]
        assert tokenizer.grammar.first_violation(ids) is None
        if states[-1].is_ended(tokenizer.end_id):
            break
        assert CONFIG.block_tokens <= len(block.ids) < 600  # notes that sound on are made to end
        assert boundary_places(tokenizer.grammar, ids, tokenizer.end_id)[-1] == len(ids)
        before, after = (notes_of(tokenizer.decode(np.array(state.ids))) for state in states[-2:])
        assert before <= after
        assert (after - before).total() == block.n_notes
    prompt = tokenizer.encode(make_score(PROMPT_NOTES).notes).ids
    theme = notes_of(tokenizer.decode(prompt))
    assert theme.total() == len(PROMPT_NOTES)
    saved = session.save()
    written = read_midi(Path(saved["path"]))
    assert theme <= notes_of(tokenizer.decode(np.array(states[-1].ids)))
    assert saved["n_notes"] == len(written.notes.pitch)
    for earlier in reversed(states[:-1]):
        undone = session.undo()
        assert undone.ids == earlier.ids
        assert undone.blocks == earlier.blocks
        assert session.read() == undone
    with pytest.raises(OrchestrionError, match="nothing to undo"):
        session.undo()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda config: config.name)
def test_a_model_of_limited_length_writes_blocks_longer_than_it(home: Home, encoding: Any) -> None:
    limited = replace(TINY, absolute_positions="learned", max_positions=96)
    session = begin(home, random_checkpoint(home.root, encoding, limited), replace(CONFIG, block_tokens=150))
    tokenizer = session.loaded.tokenizer
    for _ in range(3):
        session.propose()
        state = session.accept()
        assert tokenizer.grammar.first_violation(state.ids) is None
        if state.is_ended(tokenizer.end_id):
            break
        assert len(state.blocks[-1].ids) >= 150


def test_the_model_looks_no_further_back_than_it_is_told(home: Home) -> None:
    checkpoint = random_checkpoint(home.root, OptimusIntConfig())
    near, far = (
        begin(home, checkpoint, replace(CONFIG, context_tokens=context), name=f"c{context}", prime="random")
        for context in (16, 0)
    )
    longest = dict[str, int]()
    for session in (near, far):
        handed = list[int]()
        session.loaded.model.register_forward_pre_hook(lambda _, given, handed=handed: handed.append(given[0].shape[1]))
        session.propose()
        longest[session.name] = max(handed)
    assert longest["c16"] <= 16
    assert longest["c0"] >= len(far.read().primer.ids) - 1 >= 255


def test_a_block_begins_with_the_last_ids_before_it_where_that_is_asked_for(home: Home) -> None:
    config = replace(CONFIG, block_tokens=40, context_tokens=56, kept_tokens=16)
    session = begin(home, random_checkpoint(home.root, OptimusIntConfig()), config)
    handed = list[int]()
    session.loaded.model.register_forward_pre_hook(lambda _, given: handed.append(given[0].shape[1]))
    session.grow(4, lambda _: None)
    begun = [n for n in handed if n > 1]
    assert len(begun) >= 3  # a full context is begun anew ...
    assert max(handed) <= 56
    assert min(begun) <= 16  # ... with the last ids alone


def test_an_hourglass_writes_blocks_too(home: Home) -> None:
    config = HourglassConfig(d_model=16, n_heads=2, d_ff=16, depths=(1, 1, 1), max_relative_distance=16)
    session = begin(home, random_checkpoint(home.root, RemiConfig(), config))
    session.propose()
    assert len(session.accept().ids) > CONFIG.block_tokens


@pytest.mark.parametrize("encoding", [OoreConfig(), RemiConfig()], ids=lambda config: config.name)
def test_blocks_by_notes(home: Home, encoding: Any) -> None:
    session = begin(home, random_checkpoint(home.root, encoding), replace(CONFIG, block_notes=9))
    proposal = session.propose().proposal
    tokenizer = session.loaded.tokenizer
    ids = [tokenizer.start_id, *proposal.ids]
    places = boundary_places(tokenizer.grammar, ids, tokenizer.end_id)
    counts = [blocks.count_notes(tokenizer, ids[:place]) for place in places.tolist()]
    assert proposal.n_notes == counts[-1] >= 9 > max(counts[:-1])


def test_proposals_differ_and_come_again_from_the_same_steps(home: Home) -> None:
    checkpoint = random_checkpoint(home.root, RemiConfig())
    one, other = (begin(home, checkpoint, name=name) for name in ("one", "other"))
    proposals = [one.propose().proposal for _ in range(3)]
    assert [block.proposal for block in proposals] == [0, 1, 2]
    assert len({block.ids for block in proposals}) == 3
    assert [other.propose().proposal for _ in range(3)] == proposals
    one.accept()
    one.undo()
    fourth = one.propose().proposal
    assert (fourth.number, fourth.proposal) == (0, 3)
    assert fourth.ids not in {block.ids for block in proposals}
    elsewhere = begin(home, checkpoint, replace(CONFIG, seed=8), name="elsewhere")
    assert elsewhere.propose().proposal.ids != proposals[0].ids


def test_every_step_is_kept_and_a_new_process_would_go_on(home: Home) -> None:
    session = begin(home, random_checkpoint(home.root, RemiConfig()))
    session.propose()
    session.accept()
    session.undo()
    session.propose()
    fresh = SessionFolder(home, "tune")
    state = fresh.read()
    assert [event.step for event in state.history] == ["start", "propose", "accept", "undo", "propose"]
    assert state.proposal is not None
    assert fresh.accept().blocks == (state.proposal,)
    assert list_sessions(home) == ["tune"]


def test_what_can_be_listened_to(home: Home, tmp_path: Path) -> None:
    session = begin(home, random_checkpoint(home.root, RemiConfig()), prime="midi", prompt=write_prompt(tmp_path))
    proposed = session.propose()
    whole, block = (read_midi(path) for path in (session.proposal_path, session.block_path))
    facts = session.describe(proposed)
    assert facts["n_notes"] == len(PROMPT_NOTES) == proposed.primer.n_notes
    assert len(whole.notes.pitch) == facts["n_notes"] + facts["pending"]["n_notes"]
    assert len(block.notes.pitch) == facts["pending"]["n_notes"] > 0
    assert block.notes.onset[0] == 0
    assert facts["pending"]["seconds"] == pytest.approx(whole.notes.end_seconds.max(), abs=1e-3)
    session.accept()
    assert not session.proposal_path.exists()
    assert not session.block_path.exists()


def test_saving_twice_gives_the_same_bytes_and_where_they_come_from(home: Home, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(home.root, OoreConfig())
    session = begin(home, checkpoint, prime="midi", prompt=write_prompt(tmp_path))
    session.propose()
    session.accept()
    session.save(tmp_path / "a.mid")
    session.save(tmp_path / "b.mid")
    for suffix in (".mid", ".json"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert sidecar["midi_statistics"] == midi_statistics((tmp_path / "a.mid").read_bytes())
    assert len(sidecar["midi_statistics"]) == 14
    told = ("session", "model_version", "model_run_id", "dataset_version", "seed", "ended")
    assert [sidecar[key] for key in told] == [
        "tune", "small-small@1", "0123456789abcdef", "small@0123456789abcdef", 7, sidecar["ended"],
    ]  # fmt: skip
    assert (sidecar["primer"]["kind"], sidecar["primer"]["name"]) == ("midi", "theme.mid")
    assert [(block["number"], block["proposal"]) for block in sidecar["blocks"]] == [(0, 0)]
    assert str(tmp_path) not in (tmp_path / "a.json").read_text()
    with pytest.raises(ConfigError, match="is not named as one of"):
        session.save(tmp_path / "a.wav")
    for own in ("session.mid", "proposal.mid", "block.mid"):
        with pytest.raises(ConfigError, match="would overwrite the session's own files"):
            session.save(session.folder / own)


def test_what_the_encoding_does_not_hold_of_a_prompt_is_told(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "theme.mid"
    path.write_bytes(write_midi(make_score([*PROMPT_NOTES, (2000, 200_000, 60, 64)])))
    session = begin(home, random_checkpoint(home.root, OptimusIntConfig()), prime="midi", prompt=str(path))
    primer = session.describe(session.read())["primer"]
    assert primer["n_file_notes"] == 5
    assert primer["dropped"] == {"long_notes_clamped": 1}


def test_an_ended_piece_is_opened_again_by_undo(home: Home) -> None:
    session = begin(home, random_checkpoint(home.root, RemiConfig()))
    state = session.read()
    tokenizer, start = session.loaded.tokenizer, list(state.primer.ids)
    ids = tokenizer.encode(make_score(PROMPT_NOTES).notes).ids.tolist()
    block = blocks.Block(number=0, proposal=0, n_notes=4, config=CONFIG, ids=tuple(ids[len(start) :]))
    session.write(replace(state, proposal=block))
    assert session.describe(session.accept())["ended"]
    with pytest.raises(OrchestrionError, match="the piece has ended; undo opens it again"):
        session.propose()
    session.undo()
    assert session.propose().proposal.ids


@pytest.mark.parametrize("encoding", [OptimusIntConfig(), OoreConfig()], ids=lambda config: config.name)
def test_a_piece_grows_by_blocks_and_keeps_what_it_has_when_stopped(home: Home, encoding: Any) -> None:
    limited = replace(TINY, absolute_positions="learned", max_positions=40)
    checkpoint = random_checkpoint(home.root, encoding, limited)
    whole, stopped = (begin(home, checkpoint, name=name) for name in ("whole", "stopped"))
    lengths: list[int] = []
    grown = whole.grow(8, lambda session: lengths.append(len(session.ids)))
    assert len(grown.blocks) == 8
    assert np.diff(lengths).min() >= CONFIG.block_tokens
    tokenizer = whole.tokenizer_of(grown)
    assert tokenizer.end_id not in grown.ids
    assert {*np.cumsum([1, *(len(block.ids) for block in grown.blocks)])[1:].tolist()} <= {
        *boundary_places(tokenizer.grammar, grown.ids, tokenizer.end_id).tolist()
    }

    def stop(session: Session) -> None:
        if len(session.blocks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.grow(8, stop)
    again = SessionFolder(home, "stopped")
    assert len(again.read().blocks) == 3
    assert again.grow(5, lambda _: None).ids == grown.ids


def longest_note(session: SessionFolder) -> float:
    notes = session._score(session.read()).notes
    return float((notes.end_seconds - notes.onset_seconds).max())


@pytest.mark.parametrize("block_tokens", [8, 24, 200])
def test_no_note_sounds_for_longer_than_asked_however_a_block_is_written(home: Home, block_tokens: int) -> None:
    checkpoint = random_checkpoint(home.root, OoreConfig())
    free, limited = (
        begin(
            home, checkpoint, replace(CONFIG, block_tokens=block_tokens, max_note_seconds=seconds), name=f"s{seconds}"
        )
        for seconds in (0.0, 1.0)
    )
    for session in (free, limited):
        session.grow(3, lambda _: None)
    assert longest_note(free) > 2.5  # an untrained model lets notes hang
    assert longest_note(limited) <= 2.0 + 1e-9  # the longest time shift is one second


def always_ending(checkpoint: Path) -> Path:
    """Make a model of which every proposal would be the end of the piece."""
    loaded = load_model(checkpoint)
    with torch.no_grad():
        loaded.model.head.bias[loaded.tokenizer.end_id] += 30.0  # type: ignore[union-attr]
    optimizer = build_optimizer(OptimizerConfig(), loaded.model)
    return CheckpointFolder(checkpoint.parent).save(loaded.model, optimizer, loaded.state, ["best"], 0)


@pytest.mark.parametrize("encoding", [OoreConfig(), RemiConfig()], ids=lambda config: config.name)
def test_a_model_that_wants_to_end_gives_notes_first(home: Home, tmp_path: Path, encoding: Any) -> None:
    checkpoint = always_ending(random_checkpoint(home.root, encoding))
    start = {"prime": "midi", "prompt": write_prompt(tmp_path)}
    for name, least in (("usual", blocks.MIN_NEW_TOKENS), ("few", 1), ("may", 0)):
        config = replace(CONFIG, block_tokens=128, min_new_tokens=least)
        session = begin(home, checkpoint, config, name=name, **start)
        for _ in range(4):
            block = session.propose().proposal
            assert (block.n_notes > 0) is (least > 0)
            assert len(block.ids) > least
            assert least or block.ids == (session.loaded.tokenizer.end_id,)
    assert ComposerConfig().min_new_tokens == 64


def without_seal(text: str) -> dict[str, Any]:
    """Return the object of a JSON file as a release before seals wrote it."""
    return {key: value for key, value in json.loads(text).items() if key != SEAL}


def changed(text: str, **values: object) -> str:
    return json.dumps(without_seal(text) | values)


def test_a_session_of_an_older_release_goes_on_as_it_began(home: Home) -> None:
    checkpoint = always_ending(random_checkpoint(home.root, OoreConfig()))
    config = replace(CONFIG, min_new_tokens=0)
    new, old = (begin(home, checkpoint, config, name=name) for name in ("new", "old"))
    old.propose()
    values = without_seal(old.state_path.read_text())
    for settings in (values["config"], values["proposal"]["config"]):
        for name in ("min_new_tokens", "max_note_seconds", "device"):
            settings.pop(name)
    old.state_path.write_text(json.dumps(values))
    assert SessionFolder(home, "old").read().config == replace(config, device="cpu")
    new.propose()
    assert SessionFolder(home, "old").propose().proposal == new.propose().proposal


def test_the_length_of_a_beginning_is_kept(home: Home, tmp_path: Path) -> None:
    # Notes overlap all along, as under a pedal: there is no place without a note but the end.
    rows = [(240 * i, 960, 40 + i % 40, 64) for i in range(120)]
    path = tmp_path / "overlapping.mid"
    path.write_bytes(write_midi(make_score(rows)))
    session = begin(home, random_checkpoint(home.root, OoreConfig()), prime="midi", prompt=str(path), prime_tokens=64)
    primer = session.read().primer
    assert 32 < len(primer.ids) <= 64
    assert 0 < primer.n_notes < primer.n_file_notes == 120
    tokenizer = session.loaded.tokenizer
    assert boundary_places(tokenizer.grammar, primer.ids, tokenizer.end_id)[-1] == len(primer.ids)
    whole = begin(home, session.loaded.folder, name="whole", prime="midi", prompt=str(path))
    assert whole.read().primer.n_notes == 120


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda config: config.name)
def test_the_beginning_of_a_piece_has_the_length_asked_for(encoding: Any) -> None:
    tokenizer = build_tokenizer(learned(encoding))
    rows = [(500 * i, 80 + 40 * (i % 30), 40 + i % 50, 80) for i in range(60)]
    ids = tokenizer.encode(make_score(rows).notes).ids.tolist()
    for n_ids in (50, 100, 160):
        beginning = beginning_of(tokenizer.grammar, ids, n_ids, tokenizer.end_id)
        places = boundary_places(tokenizer.grammar, beginning, tokenizer.end_id)
        assert places[-1] == len(beginning)
        if encoding.name != "mmm":  # its bars are longer
            assert n_ids // 2 < len(beginning) <= n_ids
    assert beginning_of(tokenizer.grammar, ids, 2**20, tokenizer.end_id) == ids[: len(ids) - 1]


@pytest.mark.parametrize("encoding", [*ENCODINGS, OptimusTxtConfig(header="name")], ids=lambda config: config.name)
def test_a_random_beginning_obeys_the_grammar_and_holds_notes(home: Home, encoding: Any) -> None:
    loaded = load_model(random_checkpoint(home.root, encoding))
    primers = [make_primer(home, loaded, "random", "", 64, seed) for seed in (1, 1, 2)]
    assert primers[0] == primers[1] != primers[2]
    grammar, end_id = loaded.tokenizer.grammar, loaded.tokenizer.end_id
    for primer in primers:
        assert grammar.first_violation(primer.ids) is None
        assert boundary_places(grammar, primer.ids, end_id)[-1] == len(primer.ids)
        assert primer.n_notes > 0 or encoding.name == "mmm"


def test_a_beginning_from_the_training_split(home: Home, tmp_path: Path) -> None:
    dataset = small_dataset(home, small_corpus(tmp_path / "midi"))
    checkpoint = small_model(home, dataset, n_steps=2)
    loaded = load_model(checkpoint)
    drawn = [make_primer(home, loaded, "dataset", "", 96, seed) for seed in range(6)]
    assert len({primer.name for primer in drawn}) > 1
    for primer in drawn:
        assert primer.name.startswith(f"{dataset.reference} train row ")
        assert primer.n_notes > 0
        assert loaded.tokenizer.grammar.first_violation(primer.ids) is None
        assert boundary_places(loaded.tokenizer.grammar, primer.ids, loaded.tokenizer.end_id)[-1] == len(primer.ids)
    session = begin(home, checkpoint, prime="dataset", prime_tokens=96)
    assert session.propose().proposal.n_notes > 0


@pytest.mark.parametrize(
    ("prompt", "kind", "said"),
    [
        ("words.mid", BadScore, "not_midi: prompt words.mid"),
        ("gone.mid", NotFound, "gone.mid does not exist"),
        (".", ConfigError, "is a folder; a session continues one file"),
    ],
)
def test_a_prompt_that_cannot_be_used_leaves_nothing(
    home: Home, tmp_path: Path, prompt: str, kind: type[Exception], said: str
) -> None:
    (tmp_path / "words.mid").write_text("La la la, no MIDI here.")
    checkpoint = random_checkpoint(home.root, OoreConfig())
    with pytest.raises(kind) as error, locked_session(home, "tune", "start", create=True) as session:
        session.start(version_of(home, checkpoint), checkpoint, CONFIG, "midi", str(tmp_path / prompt))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (home.root / "sessions" / "tune").exists()


def test_mistakes_are_told_in_one_line(home: Home) -> None:
    with pytest.raises(NotFound, match=r"no session 'tune' in .*known: none yet"):
        SessionFolder(home, "tune").read()
    with pytest.raises(ConfigError, match=r"session name '\.\./tune' is not up to 64"):
        SessionFolder(home, "../tune")
    checkpoint = random_checkpoint(home.root, OoreConfig())
    session = begin(home, checkpoint)
    with pytest.raises(NotFound, match=r"no session 'other' in .*known: tune"):
        SessionFolder(home, "other").read()
    with pytest.raises(ConfigError, match="session 'tune' exists already"):
        begin(home, checkpoint)
    with pytest.raises(OrchestrionError, match="nothing to accept; propose first"):
        session.accept()
    with pytest.raises(ValueError, match="block_tokens=0 is below 1"):
        ComposerConfig(block_tokens=0)
    with pytest.raises(ValueError, match="temperature=0"):
        ComposerConfig(temperature=0.0)


def test_a_model_that_cannot_go_on_is_refused(home: Home) -> None:
    vae = VaeConfig(block=16, d_model=16, n_heads=2, n_layers=1, channels=(8,))
    checkpoint = random_checkpoint(home.root, OoreConfig())
    state = without_seal((checkpoint / "state.json").read_text())
    del state["files"]  # as before there were digests
    state["config"]["model"] = to_json(vae)
    state["config"]["seq_len"] = 16
    (checkpoint / "state.json").write_text(json.dumps(state))
    from safetensors.torch import save_file

    save_file(dict(build_model(vae, 416, 0).state_dict()), checkpoint / "model.safetensors")
    with pytest.raises(ConfigError, match="small-small@1 is a vae, which writes whole pieces from latents; a session"):
        begin(home, checkpoint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: text.replace('"blocks": []', '"blocks": 3'), "its bytes are not those that were written"),
        (lambda text: "[]", "it is no JSON object"),
        (lambda text: changed(text, format=9), "is not of session format 1"),
        (lambda text: changed(text, blocks=3), "blocks"),
        (lambda text: changed(text).replace('"history"', '"herstory"'), "herstory"),
        (lambda text: changed(text, primer={"kind": "start", "ids": [415, 7]}), "is forbidden"),
        (lambda text: changed(text, encoding={"name": "moore"}), "unknown encoding 'moore'"),
    ],
)  # fmt: skip
def test_a_damaged_session_is_told_in_one_line(home: Home, change: Any, said: str) -> None:
    session = begin(home, random_checkpoint(home.root, OoreConfig()))
    session.state_path.write_text(change(session.state_path.read_text()))
    for step in (SessionFolder(home, "tune").read, SessionFolder(home, "tune").propose):
        with pytest.raises(OrchestrionError) as error:
            step()
        assert said in str(error.value)
        assert str(session.state_path) in str(error.value)
        assert "\n" not in str(error.value)


def test_other_weights_are_refused(home: Home) -> None:
    session = begin(home, random_checkpoint(home.root, OoreConfig()))
    random_checkpoint(home.root, OoreConfig(), seed=1)
    with pytest.raises(CheckpointError, match="does not hold the weights that session tune began with"):
        SessionFolder(home, "tune").propose()
    assert session.read().proposal is None


def _hold(root: Path, is_held: Any, is_done: Any) -> None:
    with locked_session(Home.at(root), "tune", "orchestrion compose propose tune"):
        is_held.set()
        is_done.wait(30)


def test_a_second_command_on_a_session_is_refused(home: Home) -> None:
    checkpoint = random_checkpoint(home.root, OoreConfig())
    begin(home, checkpoint)
    begin(home, checkpoint, name="other")
    context = multiprocessing.get_context("spawn")
    is_held, is_done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(home.root, is_held, is_done))
    holder.start()
    try:
        assert is_held.wait(60)
        with (
            pytest.raises(HomeError, match="in use by orchestrion compose propose tune"),
            locked_session(home, "tune", "accept"),
        ):
            pass
        with locked_session(home, "other", "accept") as other:
            assert other.read().name == "other"
    finally:
        is_done.set()
        holder.join()
    with locked_session(home, "tune", "accept") as session:
        assert isinstance(session.read(), Session)
