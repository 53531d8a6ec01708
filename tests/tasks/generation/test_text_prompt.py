"""Prompts of text for a model of optimus_txt: kept in the piece, and refused where they cannot be continued."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.config import DecoderConfig, SamplingConfig
from tasks.checkpoints import LoadedModel, load_model
from tasks.config.dataset import DatasetConfig
from tasks.config.generation import GenerateConfig
from tasks.config.source_limits import SourceLimits
from tasks.dataset.publish import version_of
from tasks.errors import ConfigError, NotFound
from tasks.generation.prompts import read_prompts
from tasks.generation.summary import batch_summary
from tasks.ingest.sources.scan import scan_sources
from tasks.music.tokenizers.optimus.characters import OptimusTxtConfig, song_name
from tasks.storage.home import Home
from tasks.storage.parquet import read_table
from tests.samples import small_corpus, small_dataset, small_model
from tests.studio import Studio, sidecars_of

HEADER = "SONG=Song_with_40_notes\n"
SAMPLING = SamplingConfig(max_tokens=200)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("text")
    home = Home.at(folder / "home")
    dataset = small_dataset(home, small_corpus(folder / "midi", 8), encoding=OptimusTxtConfig())
    checkpoint = small_model(home, dataset, model=DecoderConfig(d_model=16, n_heads=2, n_layers=1, d_ff=32))
    return Studio(home, dataset, checkpoint)


def test_a_piece_begins_with_the_text(writer: Studio, tmp_path: Path) -> None:
    loaded = load_model(writer.checkpoint)
    (prompt,) = read_prompts(loaded, GenerateConfig(prompt=f"text:{HEADER}", sampling=SAMPLING))
    assert text_of(loaded, prompt.ids[1:]) == HEADER
    batch = writer.compose(n_pieces=1, prompt=f"text:{HEADER}", sampling=SAMPLING)
    (facts,) = sidecars_of(batch)
    assert facts["prompt"]["name"] == "text"
    assert facts["prompt"]["n_tokens"] == len(HEADER) + 1
    (tmp_path / "song.txt").write_text(HEADER)
    (same,) = read_prompts(loaded, GenerateConfig(prompt=str(tmp_path / "song.txt"), sampling=SAMPLING))
    assert (same.ids, same.sha256) == (prompt.ids, prompt.sha256)


def test_music_in_the_text_is_kept(writer: Studio) -> None:
    loaded = load_model(writer.checkpoint)
    rows = loaded.tokenizer.encode(loaded.tokenizer.decode(np.array(read_song(writer))).notes)
    text = text_of(loaded, rows.ids[1 : len(HEADER) + 13].tolist())
    (prompt,) = read_prompts(loaded, GenerateConfig(prompt=f"text:{text}", sampling=SAMPLING))
    assert list(prompt.ids) == rows.ids[: len(text) + 1].tolist()


def text_of(loaded: LoadedModel, ids: Sequence[int]) -> str:
    names = map(loaded.tokenizer.token_name, ids)
    return "".join(chr(int(name[2:], 16)) if name.startswith("U+") else name for name in names)


def read_song(writer: Studio) -> list[int]:
    from tasks.training.token_dataset import TokenDataset

    store = TokenDataset(writer.dataset.token_shards("train"))
    return store.tokens[: store.offsets[1]].tolist()


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("named")
    source = small_corpus(folder / "midi", 8)
    (first, *_) = sorted(source.glob("*.mid"))
    first.rename(source / "Für Elise.live.mid")
    home = Home.at(folder / "home")
    dataset = small_dataset(home, source, encoding=OptimusTxtConfig(header="name"))
    checkpoint = small_model(home, dataset, model=DecoderConfig(d_model=16, n_heads=2, n_layers=1, d_ff=32))
    return Studio(home, dataset, checkpoint)


def test_every_row_of_a_dataset_with_names_begins_with_that_of_its_file(named: Studio) -> None:
    tokenizer = load_model(named.checkpoint).tokenizer
    ledger = read_table(named.dataset.ledger, ["path", "piece"]).to_pydict()
    name_of = {piece: song_name(path) for path, piece in zip(ledger["path"], ledger["piece"], strict=True)}
    assert "Für_Elise" in name_of.values()
    n_rows = 0
    for split in ("train", "validation", "test"):
        for shard in named.dataset.token_shards(split):
            for row in read_table(shard, ["piece", "tokens", "n_notes", "n_tokens"]).to_pylist():
                head, _, _ = text_of(load_model(named.checkpoint), row["tokens"][1:-1]).partition("\n")
                assert head == f"SONG={name_of[row['piece']]}_with_{row['n_notes']}_notes"
                assert tokenizer.grammar.first_violation(row["tokens"]) is None
                assert row["n_tokens"] == len(row["tokens"])
                n_rows += 1
    assert n_rows == sum(facts["n_rows"] for facts in named.dataset.manifest["splits"].values())


@pytest.mark.slow
def test_a_song_is_asked_for_by_name_and_number_of_notes_and_the_batch_says_how_near_it_is(named: Studio) -> None:
    batch = named.compose(n_pieces=2, prompt="text:SONG=Für_Elise_with_30_notes\n", sampling=SAMPLING)
    notes = [int(facts["statistics"]["n_notes"]) for facts in sidecars_of(batch)]
    assert batch.manifest["asked_notes"] == {"asked": 30, "got": notes}
    words = batch_summary(batch)["asked_notes"]
    assert words.startswith("30 notes asked for, ")
    assert words in batch.gallery.read_text()
    with pytest.raises(ConfigError, match=r"prompt text: the vocabulary lacks 'ж' \(U\+0436\)"):
        named.compose(prompt="text:SONG=ж_with_30_notes\n", sampling=SAMPLING)
    assert "asked_notes" not in named.compose(n_pieces=1, sampling=SAMPLING).manifest


def test_a_renamed_song_makes_another_version_only_where_names_are_written(tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 6)
    (first, *_) = sorted(source.glob("*.mid"))

    def versions() -> list[str]:
        files = scan_sources([str(source)], tmp_path / "cache", SourceLimits()).files
        return [
            version_of(DatasetConfig(encoding=OptimusTxtConfig(header=header)), files) for header in ("name", "count")
        ]

    before = versions()
    first = first.rename(source / "other.mid")
    after = versions()
    assert before[0] != after[0]
    assert before[1] == after[1]
    (source / "inner").mkdir()
    first.rename(source / "inner" / "other.mid")
    assert versions() == after


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("text:SONG=Ωmega", r"prompt text: the vocabulary lacks 'Ω' \(U\+03A9\)"),
        ("text:NOTES", "prompt text: a text for this model begins with SONG=Song_with_, for it knows no names"),
        ("text:SONG=Sonata_with_30_notes\n", "begins with SONG=Song_with_, for it knows no names; a dataset with enc"),
        ("latin.txt", "prompt latin.txt is not UTF-8"),
        (f"text:{HEADER}{'!' * 300}", "prompt text: its .* tokens leave none to draw of 200"),
        ("gone.txt", "cannot read gone.txt"),
    ],
)
def test_a_text_that_cannot_be_continued_is_refused(
    writer: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, message: str
) -> None:
    (tmp_path / "latin.txt").write_bytes("SONG=Für_with_30_notes\n".encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, NotFound), match=message):
        read_prompts(load_model(writer.checkpoint), GenerateConfig(prompt=prompt, sampling=SAMPLING))


def test_a_model_of_another_encoding_and_bars_to_fill_are_refused(writer: Studio, studio: Studio) -> None:
    with pytest.raises(ConfigError, match="a text is for models of optimus_txt, but this one's encoding is oore"):
        read_prompts(load_model(studio.checkpoint), GenerateConfig(prompt="text:SONG=", sampling=SAMPLING))
    with pytest.raises(ConfigError, match="variation"):
        read_prompts(load_model(writer.checkpoint), GenerateConfig(prompt="text:SONG=", variation=0.5))
