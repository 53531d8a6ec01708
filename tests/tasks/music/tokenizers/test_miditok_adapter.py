"""The adapter for MidiTok's tokenizers: MidiTok's ids, its failures survived, and what does not fit refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tasks.errors import ConfigError
from tasks.ingest.sources.sample_corpus import write_sample_corpus
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.base import digest_of
from tasks.music.tokenizers.miditok_adapter import MidiTokConfig, MidiTokTokenizer
from tests.budget import examples
from tests.builders import DRUMS, make_score, note_rows

FORM = '{"config": {}, "tokenization": "REMI"}'


@pytest.fixture(scope="module")
def miditok() -> Any:
    return pytest.importorskip("miditok", reason="MidiTok, an optional extra, is not installed")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("songs")
    write_sample_corpus(folder, n_pieces=6)
    return sorted(folder.rglob("*.mid"))


def saved(peer: Any, folder: Path) -> MidiTokConfig:
    peer.save(folder / "tokenizer.json")
    return MidiTokConfig(tokenizer=(folder / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def peers(miditok: Any, songs: list[Path]) -> dict[str, Any]:
    """MidiTok's tokenizers that give one stream of ids, some of which have learned."""
    made = {
        name: getattr(miditok, name)(miditok.TokenizerConfig(use_programs=True, use_tempos=True))
        for name in ("REMI", "TSD", "Structured")
    }
    made["MIDILike"] = miditok.MIDILike(miditok.TokenizerConfig(use_programs=True, use_pitch_bends=True))
    made["MMM"] = miditok.MMM(miditok.TokenizerConfig(base_tokenizer="TSD"))
    for model in ("BPE", "Unigram"):
        made[model] = miditok.REMI(miditok.TokenizerConfig(use_programs=True))
        made[model].train(vocab_size=600, model=model, files_paths=songs)
    return made


NAMES = ["REMI", "TSD", "Structured", "MIDILike", "MMM", "BPE", "Unigram"]


@pytest.fixture(scope="module")
def tokenizers(peers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, MidiTokTokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: MidiTokTokenizer(saved(peer, folder)) for name, peer in peers.items()}


def by_track(score: Score) -> list[list[tuple[float, ...]]]:
    """Return onset and end in quarters, pitch, velocity, program and drums of the notes of each track, sorted."""
    notes, ticks = score.notes, score.ticks_per_quarter
    onset, end = notes.onset / ticks, (notes.onset + notes.duration) / ticks
    rows = np.stack([onset, end, notes.pitch, notes.velocity, notes.program, notes.is_drum], axis=1)
    return sorted(sorted(map(tuple, rows[notes.track == track].tolist())) for track in np.unique(notes.track))


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_miditok(
    name: str, peers: dict[str, Any], tokenizers: dict[str, MidiTokTokenizer], songs: list[Path], tmp_path: Path
) -> None:
    peer, tokenizer = peers[name], tokenizers[name]
    scores = [read_midi(path) for path in songs]
    batch = tokenizer.encode(NoteBatch.joined([score.notes for score in scores]))
    assert batch.ids.dtype == np.uint16
    assert not batch.dropped["refused"].any()
    for score, ids in zip(scores, np.split(batch.ids, batch.offsets[1:-1]), strict=True):
        in_our_order = tmp_path / "song.mid"
        in_our_order.write_bytes(write_midi(score))
        assert (ids[0], ids[-1]) == (tokenizer.start_id, tokenizer.end_id)
        assert ids[1:-1].tolist() == peer.encode(in_our_order).ids
        assert tokenizer.grammar.first_violation([*ids.tolist(), tokenizer.pad_id]) is None


@pytest.mark.parametrize("name", NAMES)
def test_music_comes_back(name: str, tokenizers: dict[str, MidiTokTokenizer], songs: list[Path]) -> None:
    tokenizer = tokenizers[name]
    scores = [read_midi(path) for path in songs[:3]]
    batch = tokenizer.encode(NoteBatch.joined([score.notes for score in scores]))
    assert batch.n_notes.tolist() == [
        len(score.notes.pitch) - lost for score, lost in zip(scores, batch.dropped["not_held"], strict=True)
    ]
    assert batch.seconds.tolist() == [score.notes.end_seconds.max() for score in scores]
    for ids, n_notes in zip(np.split(batch.ids, batch.offsets[1:-1]), batch.n_notes, strict=True):
        back = tokenizer.decode(ids)
        assert len(back.notes.pitch) == n_notes
        again = tokenizer.encode(back.notes)
        assert by_track(tokenizer.decode(again.ids)) == by_track(back)


def test_tempo_meter_and_pedal(tokenizers: dict[str, MidiTokTokenizer], tmp_path: Path, miditok: Any) -> None:
    settings = miditok.TokenizerConfig(
        use_programs=True,
        use_tempos=True,
        use_sustain_pedals=True,
        use_time_signatures=True,
        sustain_pedal_duration=True,
    )
    tokenizer = MidiTokTokenizer(saved(miditok.REMI(settings), tmp_path))
    score = make_score(
        [(0, 240, 60, 100), (1440, 240, 62, 100)],
        pedals=[(0, 480), (960, 1440)],
        tempos=[(0, 500_000), (1440, 1_000_000)],
        time_signatures=[(0, 3, 4)],
        ticks_per_quarter=480,
    )
    back = tokenizer.decode(tokenizer.encode(score.notes).ids)
    assert back.notes.onset_seconds.tolist() == pytest.approx([0, 1.5], abs=0.02)
    assert back.pedals.onset_seconds.tolist() == pytest.approx([0, 1.0], abs=0.02)
    assert back.pedals.end_seconds.tolist() == pytest.approx([0.5, 1.5], abs=0.02)
    assert (back.time_signatures.numerator[0], back.time_signatures.denominator[0]) == (3, 4)


def test_what_miditok_leaves_out_is_counted(tokenizers: dict[str, MidiTokTokenizer]) -> None:
    low = make_score([(0, 500, 3, 80), (0, 500, 60, 80), (0, 500, 36, 80, 1)], programs=(0, DRUMS))
    batch = tokenizers["TSD"].encode(
        NoteBatch.joined([score.notes for score in [low, make_score([]), make_score([(0, 500, 3, 80)])]])
    )
    assert batch.dropped["not_held"].tolist() == [1, 0, 1]
    assert batch.n_notes.tolist() == [2, 0, 0]
    assert np.diff(batch.offsets)[1:].tolist() == [2, 2]
    assert len(tokenizers["TSD"].encode(NoteBatch.joined([])).ids) == 0


def test_a_piece_on_which_miditok_fails_is_counted(
    tokenizers: dict[str, MidiTokTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers["REMI"]
    monkeypatch.setattr(tokenizer._peer, "preprocess_score", lambda score: 1 / 0)
    batch = tokenizer.encode(make_score([(0, 500, 60, 80)]).notes)
    assert batch.dropped["refused"].tolist() == [1]
    assert batch.ids.tolist() == [tokenizer.start_id, tokenizer.end_id]


@pytest.mark.slow
@examples(30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_model_writes_becomes_a_score(
    name: str, tokenizers: dict[str, MidiTokTokenizer], data: st.DataObject
) -> None:
    tokenizer = tokenizers[name]
    score = tokenizer.decode(data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=60)))
    assert np.all(score.notes.duration >= 1)
    assert np.all((score.notes.velocity >= 1) & (score.notes.velocity <= 127))
    assert score.tempos.tick[0] == 0
    assert np.all(np.diff(score.tempos.tick) > 0)
    assert np.all(np.diff(score.time_signatures.tick) > 0)


def test_music_ends_before_what_miditok_cannot_read(tokenizers: dict[str, MidiTokTokenizer]) -> None:
    tokenizer = tokenizers["MIDILike"]
    ids = tokenizer.encode(make_score([(0, 500, 60, 80), (500, 500, 62, 80)]).notes).ids[:-1].tolist()
    bend = next(t for t in range(tokenizer.vocab_size) if tokenizer.token_name(t).startswith("PitchBend"))
    program = tokenizer.token_id("Program_-1")
    assert len(note_rows(tokenizer.decode([*ids, program, bend, program, *ids]))) >= 2


def test_names_and_ids(tokenizers: dict[str, MidiTokTokenizer]) -> None:
    for name, tokenizer in tokenizers.items():
        assert tokenizer.token_name(tokenizer.end_id) == "EOS_None", name
        assert tokenizer.token_id("BOS_None") == tokenizer.start_id
        assert tokenizer.transpose_ids([tokenizer.start_id], 1) is None
        with pytest.raises(ValueError, match="outside 0-"):
            tokenizer.token_name(tokenizer.vocab_size)
        with pytest.raises(ValueError, match="outside 0-"):
            tokenizer.decode([tokenizer.vocab_size])
    assert tokenizers["TSD"].token_id("Pitch_60") == tokenizers["TSD"]._peer["Pitch_60"]
    learned = [tokenizers["BPE"].token_name(token) for token in range(tokenizers["BPE"].vocab_size)]
    assert any("+" in word for word in learned)
    with pytest.raises(ValueError, match="Pitch_999"):
        tokenizers["TSD"].token_id("Pitch_999")


def test_the_stored_form_makes_the_same_tokenizer(tokenizers: dict[str, MidiTokTokenizer]) -> None:
    for tokenizer in tokenizers.values():
        form = json.loads(json.dumps(tokenizer.to_json()))
        again = MidiTokTokenizer(MidiTokConfig(tokenizer=form["tokenizer"]))
        assert again.to_json() == form
        assert again.digest == tokenizer.digest == digest_of(form)
    assert len({tokenizer.digest for tokenizer in tokenizers.values()}) == len(tokenizers)


def test_tokenizers_that_do_not_fit(miditok: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    octuple = saved(miditok.Octuple(miditok.TokenizerConfig(use_programs=True)), tmp_path)
    by_tracks = saved(miditok.REMI(miditok.TokenizerConfig()), tmp_path)
    bare = saved(miditok.TSD(miditok.TokenizerConfig(use_programs=True, special_tokens=["PAD", "EOS"])), tmp_path)
    good = saved(miditok.TSD(miditok.TokenizerConfig(use_programs=True)), tmp_path)
    for config, said in (
        (octuple, "Octuple gives several ids at a time"),
        (by_tracks, "REMI gives one sequence for each track"),
        (bare, "lacks BOS_None"),
        (MidiTokConfig(tokenizer=FORM.replace("REMI", "Morse")), "no tokenizer named 'Morse'"),
        (MidiTokConfig(tokenizer=FORM.replace("REMI", "TokSequence")), "no tokenizer named 'TokSequence'"),
        (MidiTokConfig(tokenizer=FORM), "cannot read"),
    ):
        with pytest.raises(ConfigError, match=said):
            MidiTokTokenizer(config)
    monkeypatch.setattr("tasks.music.tokenizers.miditok_adapter.MAX_VOCABULARY", 100)
    with pytest.raises(ConfigError, match=r"has \d+ ids, limit 100"):
        MidiTokTokenizer(good)


# --- without MidiTok


def test_without_a_file_there_is_no_tokenizer() -> None:
    with pytest.raises(ConfigError, match="no MidiTok tokenizer given"):
        MidiTokTokenizer(MidiTokConfig())


@pytest.mark.parametrize("text", ["REMI", "[]", "{}", '{"tokenization": "REMI"}'])
def test_files_of_something_else_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tokenizer: "):
        MidiTokConfig(tokenizer=text)


def test_without_miditok_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "miditok", None)
    with pytest.raises(ConfigError, match=r"pip install 'orchestrion\[miditok\]'"):
        MidiTokTokenizer(MidiTokConfig(tokenizer=FORM))
