"""The index of copies of a dataset version: planted pieces lead to their source, whatever was done to them."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config.dataset import AugmentConfig
from tasks.copying import index as copying
from tasks.copying.index import CopyIndex, copy_index, human_path, source_notes
from tasks.copying.store import index_path
from tasks.dataset.upkeep import prune, verify_version
from tasks.dataset.versions import DatasetVersion
from tasks.errors import DatasetError, HomeError, NotFound
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score, build_score
from tasks.storage.home import Home
from tasks.storage.parquet import read_table
from tests.budget import examples
from tests.builders import DRUMS, make_score
from tests.samples import small_corpus, small_dataset

N_PIECES = 44


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("copying") / "midi", N_PIECES)


@pytest.fixture(scope="module")
def dataset(corpus: Path) -> DatasetVersion:
    augment = AugmentConfig(transpositions=(0,), stretches=(1.0,))
    home = Home.at(corpus.parent / "home")
    return small_dataset(home, corpus, validation_share=0.3, test_share=0.25, augment=augment)


@pytest.fixture(scope="module")
def index(dataset: DatasetVersion) -> CopyIndex:
    return copy_index(dataset)


def paths_of(dataset: DatasetVersion, *splits: str) -> list[str]:
    rows = read_table(dataset.ledger, ["path", "split"]).to_pylist()
    return [row["path"] for row in rows if row["split"] in splits]


def scores_of(dataset: DatasetVersion, corpus: Path, *splits: str) -> dict[str, Score]:
    return {path: read_midi(corpus / path) for path in paths_of(dataset, *splits)}


def changed(
    score: Score, semitones: int = 0, stretch: float = 1.0, first: int = 0, last: int | None = None, at: float = 0.0
) -> Score:
    """Some notes of a score, in another key and at another tempo, on a grid of 10 ms; they begin after `at` seconds."""
    notes, chosen = score.notes, slice(first, last)
    start = notes.onset_seconds[chosen].min(initial=np.inf)
    onset = np.rint(100 * (at + stretch * (notes.onset_seconds[chosen] - start)))
    duration = np.maximum(1, np.rint(100 * stretch * (notes.end_seconds - notes.onset_seconds)[chosen]))
    columns = {name: getattr(notes, name)[chosen] for name in ("velocity", "program", "is_drum", "track")}
    pitch = notes.pitch[chosen].astype(int) + np.where(columns["is_drum"], 0, semitones)
    return build_score(50, columns | {"onset": onset, "duration": duration, "pitch": pitch})


def joined(*scores: Score) -> Score:
    columns = ("onset", "duration", "pitch", "velocity", "program", "is_drum", "track")
    return build_score(50, {name: np.concatenate([getattr(s.notes, name) for s in scores]) for name in columns})


@examples(40)
@given(place=st.integers(0, 1000), semitones=st.integers(-5, 5), stretch=st.floats(0.5, 2))
def test_a_training_piece_leads_to_its_source(
    index: CopyIndex, dataset: DatasetVersion, corpus: Path, place: int, semitones: int, stretch: float
) -> None:
    paths = paths_of(dataset, "train")
    path = paths[place % len(paths)]
    score = read_midi(corpus / path)
    check = index.check(changed(score, semitones, stretch))
    match = check.match
    assert match is not None
    assert match.source_file == path
    assert match.transposition == semitones
    assert match.stretch == pytest.approx(stretch, rel=0.02)
    assert match.share > 0.9
    assert match.coverage >= match.share
    assert check.is_beyond
    assert check.n_run_notes == match.n_notes == round(match.share * check.n_notes)


def test_a_passage_is_found_at_its_place(index: CopyIndex, dataset: DatasetVersion, corpus: Path) -> None:
    path, score = max(scores_of(dataset, corpus, "train").items(), key=lambda item: len(item[1].notes.pitch))
    other = next(iter(scores_of(dataset, corpus, "test").values()))
    before = changed(other, last=60)
    at = float(before.notes.onset_seconds.max()) + 2
    piece = joined(before, changed(score, 3, 1.5, first=80, last=200, at=at))
    match = index.nearest(piece)
    assert match is not None
    assert (match.source_file, match.transposition) == (path, 3)
    assert match.stretch == pytest.approx(1.5, rel=0.02)
    pitched = np.flatnonzero(~piece.notes.is_drum[60:]) + 60
    assert match.first_note == pitched[0]
    assert match.last_note >= pitched[-1] - 6
    assert match.start_seconds == pytest.approx(at, abs=0.3)
    assert match.end_seconds <= piece.notes.onset_seconds.max()
    source = score.notes.onset_seconds
    assert match.source_start_seconds == pytest.approx(source[80], abs=0.3)
    assert match.source_end_seconds == pytest.approx(source[199], abs=0.3)
    assert 0 < match.coverage < 1


def test_the_passage_of_the_source_can_be_shown(index: CopyIndex, dataset: DatasetVersion, corpus: Path) -> None:
    score = next(iter(scores_of(dataset, corpus, "train").values()))
    match = index.nearest(score)
    assert match is not None
    passage, whole = source_notes(dataset, match).notes, score.notes
    inside = slice(match.first_note, match.last_note + 1)
    begin, end = match.source_start_seconds - 1e-3, match.source_end_seconds + 1e-3
    heard = (whole.onset_seconds > begin) & (whole.onset_seconds < end)
    assert sorted(passage.pitch.tolist()) == sorted(whole.pitch[heard].tolist())
    assert passage.is_drum.sum() == whole.is_drum[heard].sum()
    start = whole.onset_seconds[inside].min()
    assert np.allclose(np.sort(passage.onset_seconds), np.sort(whole.onset_seconds[heard]) - start, atol=2e-3)
    assert (passage.onset_seconds[0], passage.duration.min() > 0) == (0.0, True)


def test_a_prompt_does_not_count(index: CopyIndex, dataset: DatasetVersion, corpus: Path) -> None:
    prompt = next(iter(scores_of(dataset, corpus, "train").values()))
    own = next(iter(scores_of(dataset, corpus, "test").values()))
    at = float(prompt.notes.onset_seconds.max()) + 1
    piece = joined(changed(prompt), changed(own, at=at))
    assert index.check(piece).is_beyond
    assert index.check(piece, after_seconds=at).n_run_notes == index.check(changed(own, at=at)).n_run_notes
    assert index.check(piece, after_seconds=10 * at).n_notes == 0


def test_held_out_pieces_are_the_human_range(index: CopyIndex, dataset: DatasetVersion, corpus: Path) -> None:
    held_out = scores_of(dataset, corpus, "validation", "test")
    assert (index.human.n_held_out, index.human.n_measured) == (len(held_out), len(held_out))
    checks = [index.check(score) for score in held_out.values()]
    assert all(check.human_limit is not None for check in checks if check.n_notes > 16)
    verdict = index.judge(checks)
    assert verdict.is_beyond is False
    assert verdict.share_beyond <= 0.1
    copies = [index.check(changed(score, 2)) for score in list(scores_of(dataset, corpus, "train").values())[:4]]
    assert index.judge(checks[:12] + copies).is_beyond


@pytest.mark.parametrize("n_notes", [0, 1, 2, 3])
@pytest.mark.parametrize("program", [0, DRUMS])
def test_a_few_notes_or_drums_alone_match_nothing(index: CopyIndex, n_notes: int, program: int) -> None:
    score = make_score([(500 * i, 400, 60 + i, 90) for i in range(n_notes * (20 if program == DRUMS else 1))],
                       programs=[program])  # fmt: skip
    check = index.check(score)
    assert (check.n_notes, check.match) == (0 if program == DRUMS else n_notes, None)
    assert (check.human_limit, check.is_beyond, check.n_run_notes) == (None, None, 0)
    assert check.as_json()["match"] is None


def rebuilt(dataset: DatasetVersion, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ask for the index once more and return what was logged."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "tasks"):
        copy_index(dataset)
    return [record.getMessage().split(" is damaged")[0] for record in caplog.records]


def test_it_is_made_once(index: CopyIndex, dataset: DatasetVersion, caplog: pytest.LogCaptureFixture) -> None:
    before = index_path(index.folder).stat()
    assert rebuilt(dataset, caplog) == []
    assert index_path(index.folder).stat().st_ino == before.st_ino
    assert CopyIndex.open(dataset.version_folder).lines.seeds.tolist() == index.lines.seeds.tolist()
    assert len(index.lines.pieces) == len(paths_of(dataset, "train"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "other", "removed"])
def test_a_damaged_index_is_made_again(
    index: CopyIndex, dataset: DatasetVersion, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = index_path(dataset.version_folder)
    whole = path.read_bytes()
    middle = len(whole) // 2
    others = {
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "cut": whole[:-8],
        "emptied": b"",
        "other": b"[1]" + whole[3:],
    }
    path.unlink()
    leftover = path.with_name(f".{path.name}.1-1.tmp")
    leftover.write_bytes(b"")
    if damage != "removed":
        path.write_bytes(others[damage])
    if damage in ("cut", "emptied", "other", "removed"):
        with pytest.raises(NotFound, match="copy_index"):
            CopyIndex.open(dataset.version_folder)
    said = rebuilt(dataset, caplog)
    expected = [] if damage == "removed" else [str(path)]
    assert said[:-1] == expected
    assert said[-1].startswith(f"indexed {len(index.lines.pitch)} notes of {len(index.lines.pieces)} training pieces")
    assert path.read_bytes() == whole
    assert not leftover.exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"n_held_out": 1, "n_measured": 1, "runs": {"a": {}}}', None])
def test_a_damaged_human_range_is_measured_again(
    index: CopyIndex, dataset: DatasetVersion, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    path = human_path(index.folder)
    whole = path.read_bytes()
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(NotFound, match="human range"):
        _ = CopyIndex.open(dataset.version_folder).human
    said = rebuilt(dataset, caplog)
    assert said[:-1] == ([] if text is None else [str(path)])
    assert said[-1].startswith(f"compared {index.human.n_measured} of {index.human.n_held_out} held-out pieces")
    assert path.read_bytes() == whole


def test_several_may_ask_at_once(index: CopyIndex, dataset: DatasetVersion, caplog: pytest.LogCaptureFixture) -> None:
    index_path(index.folder).unlink()
    human_path(index.folder).unlink()
    with caplog.at_level(logging.INFO, "tasks"), ThreadPoolExecutor(4) as pool:
        asked = list(pool.map(copy_index, [dataset] * 4))
    said = [record.getMessage().split()[0] for record in caplog.records]
    assert said == ["indexed", "compared"]
    assert all(one.lines.seeds.tolist() == index.lines.seeds.tolist() for one in asked)


def test_pruning_takes_the_index_with_its_version(tmp_path: Path, home: Home) -> None:
    older = three_pieces(tmp_path / "older", home)
    copy_index(older)
    assert verify_version(older) == []
    newer = three_pieces(tmp_path / "newer", home, n_notes=4)
    copy_index(newer)
    assert prune(home, keep_versions=1).versions == (older.reference,)
    assert not older.version_folder.exists()
    assert CopyIndex.open(newer.version_folder).human.n_held_out == 2
    assert verify_version(newer) == []


def test_many_held_out_pieces_are_sampled(
    index: CopyIndex, dataset: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = human_path(index.folder)
    whole = path.read_bytes()
    monkeypatch.setattr(copying, "MOST_MEASURED", 5)
    path.unlink()
    sampled = copy_index(dataset).human
    assert (sampled.n_measured, sampled.n_held_out) == (5, index.human.n_held_out)
    path.write_bytes(whole)


def three_pieces(folder: Path, home: Home, n_notes: int = 3) -> DatasetVersion:
    """A dataset with a few notes to train on, and drums held out."""
    folder.mkdir()
    scores = {
        "train.mid": make_score([(500 * i, 400, 60 + i, 90) for i in range(n_notes)]),
        "validation.mid": make_score([(250 * i, 100, 36 + i % 3, 90) for i in range(40)], programs=[DRUMS]),
        "test.mid": make_score([(125 * i, 100, 42 + i % 5, 90) for i in range(40)], programs=[DRUMS]),
    }
    for name, score in scores.items():
        (folder / name).write_bytes(write_midi(score, name))
    official = {name: name.removesuffix(".mid") for name in scores}
    return small_dataset(home, folder, official, split="official")


def test_a_tiny_training_split_and_nothing_held_out_to_compare(tmp_path: Path, home: Home) -> None:
    dataset = three_pieces(tmp_path / "midi", home)
    index = copy_index(dataset)
    assert (len(index.lines.pitch), len(index.lines.seeds), len(index.lines.pieces)) == (3, 0, 1)
    assert (index.human.n_held_out, dict(index.human.runs)) == (2, {})
    check = index.check(make_score([(500 * i, 400, 60 + i, 90) for i in range(40)]))
    assert (check.n_notes, check.match, check.human_limit, check.is_beyond) == (40, None, None, None)
    assert index.judge([check]).is_beyond is None


def test_what_is_missing_is_named(tmp_path: Path, home: Home) -> None:
    dataset = three_pieces(tmp_path / "midi", home)
    index_path(dataset.version_folder).mkdir()
    with pytest.raises(HomeError, match=r"cannot write .*copying-1\.index"):
        copy_index(dataset)
    index_path(dataset.version_folder).rmdir()
    songs = dataset.folder / dataset.manifest["songs"][0]
    data = songs.read_bytes()
    songs.write_bytes(data[:100])
    with pytest.raises(DatasetError, match="cannot be read"):
        copy_index(dataset)
    songs.unlink()
    with pytest.raises(DatasetError, match=f"lacks .*{songs.name}"):
        copy_index(dataset)
    assert list(dataset.version_folder.glob("*copying*")) == []


def test_a_piece_that_no_shard_holds(index: CopyIndex, dataset: DatasetVersion, tmp_path: Path, corpus: Path) -> None:
    match = index.nearest(next(iter(scores_of(dataset, corpus, "train").values())))
    assert match is not None
    other = three_pieces(tmp_path / "midi", Home.at(tmp_path / "home"))
    with pytest.raises(NotFound, match=f"no piece {match.source}"):
        source_notes(other, match)


def test_a_worker_needs_no_ray(index: CopyIndex) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.copying.index import CopyIndex;"
        "index = CopyIndex.open(Path(sys.argv[1])); print(len(index.lines.pitch), index.human.n_held_out);"
        "assert not {'ray', 'torch', 'prefect', 'mlflow'} & set(sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code, index.folder], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [str(len(index.lines.pitch)), str(index.human.n_held_out)]
