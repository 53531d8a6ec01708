"""Prompts of text for a model of optimus_txt: kept in the piece, and refused where they cannot be continued."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.config import DecoderConfig, SamplingConfig
from tasks.checkpoints import LoadedModel, load_model
from tasks.config.generation import GenerateConfig
from tasks.errors import ConfigError, NotFound
from tasks.generation.prompts import read_prompts
from tasks.music.tokenizers.optimus.characters import OptimusTxtConfig
from tasks.storage.home import Home
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


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("text:SONG=Ωmega", r"prompt text: the vocabulary lacks 'Ω' \(U\+03A9\)"),
        ("text:NOTES", "prompt text: "),
        (f"text:{HEADER}{'!' * 300}", "prompt text: its .* tokens leave none to draw of 200"),
        ("gone.txt", "cannot read gone.txt"),
    ],
)
def test_a_text_that_cannot_be_continued_is_refused(writer: Studio, prompt: str, message: str) -> None:
    with pytest.raises((ConfigError, NotFound), match=message):
        read_prompts(load_model(writer.checkpoint), GenerateConfig(prompt=prompt, sampling=SAMPLING))


def test_a_model_of_another_encoding_and_bars_to_fill_are_refused(writer: Studio, studio: Studio) -> None:
    with pytest.raises(ConfigError, match="a text is for models of optimus_txt, but this one's encoding is oore"):
        read_prompts(load_model(studio.checkpoint), GenerateConfig(prompt="text:SONG=", sampling=SAMPLING))
    with pytest.raises(ConfigError, match="variation"):
        read_prompts(load_model(writer.checkpoint), GenerateConfig(prompt="text:SONG=", variation=0.5))
