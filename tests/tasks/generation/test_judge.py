"""Judged batches: copies caught with their source and written anew, the best of several attempts kept."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tasks.copying.human_range import HumanRange
from tasks.copying.index import human_path
from tasks.errors import ConfigError
from tasks.generation import candidates
from tasks.music.metrics.judgement import typicality
from tasks.sampling.sample_ids import WrittenIds
from tasks.storage.files import json_bytes
from tasks.storage.home import Home
from tasks.training.token_dataset import TokenDataset
from tests.studio import Studio, files_of, sidecars_of

pytestmark = pytest.mark.slow  # seconds a test; see `make check`


@pytest.fixture
def planting(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Make the first attempt at piece 1 a training piece, three semitones up; return its ids."""
    store = TokenDataset(studio.dataset.token_shards("train"))
    lengths = np.diff(store.offsets)
    row = int(np.argmax(lengths))
    whole = store.tokens[store.offsets[row] : store.offsets[row + 1]]
    from tasks.checkpoints import load_model

    planted = load_model(studio.checkpoint).tokenizer.transpose_ids(whole, 3)
    assert planted is not None
    real = candidates.write_ids

    def write(loaded: Any, prompts: Any, indices: Any, attempts: Any, latents: Any, config: Any, on_piece: Any,
              *rest: Any) -> None:  # fmt: skip
        def swap(piece: WrittenIds) -> None:
            is_chosen = (indices[piece.place], attempts[piece.place]) == (1, 0)
            on_piece(replace(piece, ids=planted.astype(np.int64)) if is_chosen else piece)

        real(loaded, prompts, indices, attempts, latents, config, swap, *rest)

    monkeypatch.setattr(candidates, "write_ids", write)
    return planted


def test_a_batch_is_set_beside_held_out_music(studio: Studio) -> None:
    batch = studio.compose()
    judgement, copying = batch.manifest["judgement"], batch.manifest["copying"]
    assert judgement["n_generated"] == 3
    assert judgement["n_held_out"] == len(
        [
            row
            for split in ("validation", "test")
            for row in TokenDataset(studio.dataset.token_shards(split)).offsets[1:]
        ]
    )
    assert judgement["fd_feat"]["features"] == "v1"
    assert copying["n_pieces"] == 3
    assert not copying["is_beyond"]
    assert batch.manifest["validity"]["n_files"] == 3
    assert batch.manifest["unjudged"] == ""
    for sidecar in sidecars_of(batch):
        assert 0 <= sidecar["scores"]["typicality"] <= 1
        assert sidecar["scores"]["originality"] == pytest.approx(
            1 - (sidecar["copying"]["match"] or {"share": 0})["share"], abs=1e-4
        )
        assert sidecar["chosen_from"] is None
        assert sidecar["copying"]["human_limit"] in (13, None)
    page = batch.gallery.read_text()
    assert "typicality" in page
    assert "pitch class entropy" in page


def test_a_planted_training_piece_is_caught_with_its_source(studio: Studio, planting: np.ndarray) -> None:
    batch = studio.compose(seed=1)
    one = sidecars_of(batch)[1]
    match = one["copying"]["match"]
    assert one["flags"][0] == "copy suspected"
    assert one["copying"]["is_beyond"]
    assert match["transposition"] in (2, 3)  # the row itself may be a variant, a semitone up
    assert match["share"] > 0.5
    assert match["source_file"].endswith(".mid")
    page = batch.gallery.read_text()
    assert "copy suspected" in page
    assert match["source_file"] in page
    assert "copy suspected" not in [flag for piece in (0, 2) for flag in sidecars_of(batch)[piece]["flags"]]


def test_a_copy_is_written_anew_where_copies_are_not_wanted(studio: Studio, planting: np.ndarray) -> None:
    batch = studio.compose(seed=1, reject_copies=True)
    kept = sidecars_of(batch)
    assert [piece["attempt"] for piece in kept] == [0, 1, 0]
    assert kept[1]["chosen_from"]["rejected_as_copies"] == [0]
    assert not any(piece["copying"]["is_beyond"] for piece in kept)
    assert (batch.manifest["n_attempts"], batch.manifest["n_rejected_as_copies"]) == (4, 1)
    files = files_of(batch.folder)
    assert files_of(studio.compose(seed=1, reject_copies=True).folder) == files


@pytest.mark.parametrize("by", ["typicality", "originality"])
def test_the_best_of_several_attempts_is_kept(studio: Studio, by: str) -> None:
    single = studio.compose(seed=2)
    batch = studio.compose(seed=2, best_of=3, best_by=by)
    assert batch.name != single.name
    assert batch.manifest["n_attempts"] == 9
    for one, kept in zip(sidecars_of(single), sidecars_of(batch), strict=True):
        scores = kept["chosen_from"]["scores"]
        assert list(scores) == ["0", "1", "2"]
        assert kept["chosen_from"]["by"] == by
        assert kept["scores"][by] == scores[str(kept["attempt"])] == max(scores.values())
        assert scores["0"] == one["scores"][by]
        if kept["attempt"] == 0:
            assert kept["statistics"] == one["statistics"]
    assert any(piece["attempt"] for piece in sidecars_of(batch)) or by == "originality"


def test_typicality_is_of_the_same_excerpts_of_held_out_pieces(studio: Studio) -> None:
    batch = studio.compose(seed=3)
    pieces = sidecars_of(batch)
    store_rows = []
    for split in ("validation", "test"):
        store = TokenDataset(studio.dataset.token_shards(split))
        store_rows += [store.tokens[a:b][:160] for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
    from tasks.checkpoints import load_model
    from tasks.music.metrics.piece_metrics import piece_statistics

    tokenizer = load_model(studio.checkpoint).tokenizer
    held_out = [piece_statistics(tokenizer.decode(row)) for row in store_rows]
    wanted = typicality([piece["statistics"] for piece in pieces], held_out)
    assert [piece["scores"]["typicality"] for piece in pieces] == pytest.approx(list(wanted), abs=1e-4)


@pytest.mark.parametrize("wish", [{"best_of": 2}, {"reject_copies": True}], ids=str)
def test_without_the_dataset_nothing_is_judged_and_that_is_told(
    studio: Studio, tmp_path: Path, wish: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = replace(studio, home=Home.at(tmp_path / "elsewhere"))
    batch = elsewhere.compose()
    said = f"its dataset {studio.dataset.reference} is not there"
    assert (batch.manifest["judgement"], batch.manifest["unjudged"]) == (None, said)
    assert batch.manifest["flags"] == [f"not compared with real music: {said}"]
    assert [piece["scores"] for piece in sidecars_of(batch)] == [{}] * 3
    with pytest.raises(ConfigError, match=said):
        elsewhere.compose(**wish)


def test_copies_cannot_be_rejected_where_nobody_knows_what_people_share(studio: Studio) -> None:
    path = human_path(studio.dataset.version_folder)
    known = path.read_bytes()
    path.write_bytes(json_bytes(HumanRange(3, 3, {32: {5: 3}}).as_json()))
    try:
        with pytest.raises(ConfigError, match=r"reject_copies=true needs at least 19 held-out pieces .* has 3"):
            studio.compose(reject_copies=True)
        batch = studio.compose(seed=8)
    finally:
        path.write_bytes(known)
    assert batch.manifest["copying"]["n_judged"] == 0
    assert all(piece["copying"]["is_beyond"] is None for piece in sidecars_of(batch))


def test_the_notes_of_a_prompt_are_no_copies(studio: Studio) -> None:
    own = studio.compose(seed=9, n_pieces=2, prompt="split:train", prompt_notes=40)
    for sidecar in sidecars_of(own):
        assert sidecar["prompt"]["name"].startswith("train/")
        assert sidecar["copying"]["n_notes"] <= sidecar["statistics"]["n_notes"] - 30
        assert not sidecar["copying"]["is_beyond"]


def test_music_xml_is_written_on_request(studio: Studio) -> None:
    batch = studio.compose(seed=4, musicxml=True)
    pages = sorted((batch.folder / "pieces").glob("*.mxl"))
    assert [page.stem for page in pages] == ["0000", "0001", "0002"]
    assert all(page.read_bytes()[:2] == b"PK" for page in pages)
    assert all("musicxml_losses" in piece for piece in sidecars_of(batch))


def test_a_soundfont_that_is_not_there_is_told_before_anything_is_written(studio: Studio) -> None:
    with pytest.raises(ConfigError, match=r"soundfont='/gone\.sf2'"):
        studio.compose(seed=5, soundfont="/gone.sf2", audio="mp3")
    assert not list(studio.home.generations.glob(".*"))


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_a_batch_has_lossless_sound_where_asked(studio: Studio, format: str) -> None:
    batch = studio.compose(seed=7, n_pieces=1, audio=format)
    (sound,) = (batch.folder / "pieces").glob(f"*.{format}")
    samples, rate = soundfile.read(sound)
    (facts,) = sidecars_of(batch)
    assert 0 <= len(samples) / rate - facts["statistics"]["seconds"] < 6  # the last notes fade out
    assert f"data:audio/{format};base64," in (batch.folder / "gallery.html").read_text()


def test_a_batch_whose_soundfont_is_broken_has_no_audio_and_a_page_that_plays(
    studio: Studio, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.sf2").write_bytes(b"RIFF\x04\x00\x00\x00sfbk")
    batch = studio.compose(seed=6, soundfont=str(tmp_path / "broken.sf2"), audio="ogg")
    said = [record.message for record in caplog.records if "no audio" in record.message]
    assert len(said) == 1
    assert re.fullmatch(
        r"no audio: midirenderer fails with status 1: .*; the gallery's page plays the notes itself", said[0]
    )
    assert {path.suffix for path in (batch.folder / "pieces").iterdir()} == {".mid", ".png", ".json"}
    for sidecar in sidecars_of(batch):
        assert [line for line in sidecar["warnings"] if line.startswith("no audio: midirenderer fails")]
        assert "played_by" not in sidecar
    page = (batch.folder / "gallery.html").read_text()
    assert "<audio" not in page
    assert page.count('class="piece') >= 3
    assert studio.compose(seed=6, audio="ogg").name != batch.name, "with sound it is another batch"
