"""Every encoding on the one data path: a dataset in it, its vocabulary, its windows, and what came before it kept."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.config.dataset import AugmentConfig, WindowConfig
from tasks.config.presets import PRESETS, build_preset
from tasks.config.serialization import ConfigError
from tasks.dataset.variants import encode_variants
from tasks.dataset.versions import DatasetVersion
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tasks.music.tokenizers.oore import OoreConfig
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntConfig
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtConfig
from tasks.music.tokenizers.registry import ENCODINGS, default_config, needs_vocabulary, symbols_in, tokenizer_from_json
from tasks.music.tokenizers.remi.vocabulary import RemiConfig
from tasks.music.transforms import transpose
from tasks.storage.home import Home
from tests.builders import DRUMS, make_score
from tests.samples import small_corpus, small_dataset

OWN = [OoreConfig(), RemiConfig(), OptimusIntConfig(instruments=True), OptimusTxtConfig(channels=True), MmmConfig()]
# A new encoding is tested from its line in the registry on; MidiTok's needs a tokenizer file and has tests of its own.
OWN += [default_config(name) for name in ENCODINGS if name not in {"miditok", *(config.name for config in OWN)}]


def rows_of(version: DatasetVersion, split: str) -> list[dict[str, Any]]:
    return [row for path in version.token_shards(split) for row in pq.read_table(path, partitioning=None).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", OWN, ids=lambda config: config.name)
def test_a_dataset_in_each_encoding(home: Home, tmp_path: Path, encoding: Any) -> None:
    version = small_dataset(home, small_corpus(tmp_path / "midi", 12), encoding=encoding)
    stored = json.loads(json.dumps(version.manifest["encoder"]))
    tokenizer = tokenizer_from_json(stored["settings"])
    assert tokenizer.digest == stored["digest"]
    for split in ("train", "validation", "test"):
        rows = rows_of(version, split)
        assert sum(row["n_tokens"] for row in rows) == version.manifest["splits"][split]["n_tokens"] > 0
        for row in rows:
            ids = row["tokens"]
            assert (ids[0], ids[-1]) == (tokenizer.start_id, tokenizer.end_id)
            assert tokenizer.grammar.first_violation(ids) is None
            assert max(ids) < tokenizer.vocab_size
        assert all(len(tokenizer.decode(row["tokens"]).notes.pitch) > 0 for row in rows)


def test_another_encoding_parses_nothing_again(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 8)
    first = small_dataset(home, source)
    songs = {path: path.stat().st_mtime_ns for path in (first.folder / "songs").iterdir()}
    second = small_dataset(home, source, encoding=RemiConfig())
    assert second.version != first.version
    assert second.manifest["songs"] == first.manifest["songs"]
    assert {path: path.stat().st_mtime_ns for path in (second.folder / "songs").iterdir()} == songs
    assert not set(second.token_shards("train")) & set(first.token_shards("train"))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", [OptimusTxtConfig(), MmmConfig()], ids=lambda config: config.name)
def test_a_learned_vocabulary_is_that_of_all_splits_and_variants(home: Home, tmp_path: Path, encoding: Any) -> None:
    version = small_dataset(home, small_corpus(tmp_path / "midi", 12), encoding=encoding)
    settings = version.manifest["encoder"]["settings"]
    assert len(settings["vocabulary"]) == len(set(settings["vocabulary"])) > 20
    dropped = [version.manifest["splits"][split]["notes_dropped"] for split in ("train", "validation", "test")]
    assert not any(counts[reason] for counts in dropped for reason in counts if reason.startswith("unknown"))
    unlearned = ENCODINGS[encoding.name][1](encoding)
    batch = make_score([(0, 100, 60, 80)]).notes
    with pytest.raises(ConfigError, match="vocabulary"):
        unlearned.encode(batch)


@pytest.mark.slow
def test_windows_are_rows_of_their_own_and_hold_every_note(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 8)
    whole = small_dataset(home, source, encoding=MmmConfig())
    cut = small_dataset(home, source, encoding=MmmConfig(), windows=WindowConfig(bars=4))
    for split in ("train", "validation", "test"):
        rows = rows_of(cut, split)
        assert {row["piece"] for row in rows} == {row["piece"] for row in rows_of(whole, split)}
        for piece in {row["piece"] for row in rows}:
            numbers = sorted({row["window"] for row in rows if row["piece"] == piece})
            assert numbers == list(range(len(numbers)))
    assert max(row["window"] for row in rows_of(cut, "train")) > 0
    assert cut.manifest["splits"]["train"]["max_tokens"] < whole.manifest["splits"]["train"]["max_tokens"]
    assert cut.manifest["splits"]["train"]["n_pieces"] == whole.manifest["splits"]["train"]["n_pieces"]


@pytest.mark.parametrize(
    ("bars", "hop", "message"),
    [(-1, 0, "bars=-1 is below 0"), (4, 5, "hop_bars=5 is above bars=4"), (2000, 0, "bars=2000 is above 1024")],
)
def test_impossible_windows_are_refused(bars: int, hop: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowConfig(bars=bars, hop_bars=hop)


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name != "miditok"])
def test_a_form_comes_back_and_a_changed_one_is_refused(name: str) -> None:
    tokenizer = ENCODINGS[name][1](default_config(name))
    form = json.loads(json.dumps(tokenizer.to_json()))
    assert tokenizer_from_json(form).digest == tokenizer.digest
    with pytest.raises(ConfigError):
        tokenizer_from_json(form | {"revision": 99})
    with pytest.raises(ConfigError):
        tokenizer_from_json({key: value for key, value in form.items() if key != next(iter(form))})


def test_names_and_ids_are_inverse() -> None:
    for encoding in (config for config in OWN if not needs_vocabulary(config)):
        tokenizer = ENCODINGS[encoding.name][1](encoding)
        names = [tokenizer.token_name(token) for token in range(tokenizer.vocab_size)]
        assert [tokenizer.token_id(said) for said in names] == list(range(tokenizer.vocab_size))
        with pytest.raises(ValueError, match=str(tokenizer.vocab_size)):
            tokenizer.token_name(tokenizer.vocab_size)


def test_presets_name_encodings_that_exist() -> None:
    for name in PRESETS:
        config = build_preset(name).dataset.encoding
        assert replace(config) == config
        assert np.iinfo(np.uint16).max >= ENCODINGS[config.name][1](config).vocab_size > 3


@pytest.mark.parametrize("encoding", OWN, ids=lambda config: config.name)
def test_derived_transpositions_are_encodings_of_transposed_notes(encoding: Any) -> None:
    random = np.random.default_rng(7)
    scores = []
    for _ in range(6):  # more than one at a time: rows are derived from pieces laid end to end
        rows = [
            (int(on), int(length), int(pitch), 64 + 8 * int(part), int(part))
            for on, length, pitch, part in zip(
                np.sort(random.integers(0, 8000, 40)), random.integers(60, 900, 40), random.integers(36, 90, 40),
                random.integers(0, 3, 40), strict=True,
            )
        ]  # fmt: skip
        scores.append(make_score(rows, programs=(0, 40, DRUMS)))
    scores.append(make_score([(0, 400, 20, 80), (500, 400, 108, 80)]))  # near the borders of what remi holds
    batch, pieces = NoteBatch.joined([score.notes for score in scores]), [f"{7919 * (i + 1):016x}" for i in range(7)]
    moved = [transpose(batch, semitones)[0] for semitones in (-3, 2)]
    if needs_vocabulary(encoding):
        encoding = encoding.with_symbols(
            symbols_in(encoding, batch).union(*(symbols_in(encoding, part) for part in moved))
        )
    tokenizer = ENCODINGS[encoding.name][1](encoding)
    augment = AugmentConfig(transpositions=(-3, 0, 2), stretches=(1.0,))
    table = encode_variants(tokenizer, augment, batch, pieces).table(pieces)
    assert table.num_rows == 21
    for row in table.to_pylist():
        piece = batch.take(np.array([pieces.index(row["piece"])]))
        expected = tokenizer.encode(transpose(piece, row["transposition"])[0])
        assert row["tokens"] == expected.ids.tolist()
        assert row["n_notes"] == expected.n_notes[0]
