"""A dataset as readable text: a header and every song, in the encoding of Optimus VIRTUOSO."""

import datetime
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.config.augmentations import NO_AUGMENTATION
from tasks.config.dataset import AugmentConfig
from tasks.config.overrides import apply_overrides
from tasks.config.serialization import from_json
from tasks.dataset.augment import vary_notes
from tasks.dataset.encode import read_notes
from tasks.dataset.split import SPLITS
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError, DatasetError
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.optimus.characters import OptimusTxtConfig
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtTokenizer
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.storage.parquet import read_table


def dataset_text(
    dataset: DatasetVersion, overrides: Sequence[str] = (), split: str = "", augmented: bool = False
) -> tuple[str, int]:
    """Return the text of all accepted songs, or of one split's, in order of path, and how many songs it holds.

    Args:
        overrides: of the encoding's settings, which are those of the dataset where that is in `optimus_txt`, otherwise
            the defaults.
        augmented: write the songs of the training split in all variants that the dataset's augmentation makes of them.
    Raises:
        ConfigError: an override does not fit, or there is no such split.
        DatasetError: the dataset or the split has no song.
    """
    if split and split not in SPLITS:
        raise ConfigError(f"--split {split}: known are {', '.join(SPLITS)}")
    if not dataset.manifest["songs"]:
        raise DatasetError(f"{dataset.reference} holds token ids and no songs")
    form, stored = dataset.manifest["encoder"]["settings"], dataset.manifest["config"]
    own = tokenizer_from_json(form).config if form["name"] == OptimusTxtTokenizer.name else OptimusTxtConfig()
    tokenizer = OptimusTxtTokenizer(apply_overrides(own, overrides))
    ledger = read_table(dataset.ledger, ["path", "piece", "status", "split"]).sort_by("path")
    rows = ledger.filter(pc.equal(ledger["status"], "accepted"))
    if split:
        rows = rows.filter(pc.equal(rows["split"], split))
    if not len(rows):
        raise DatasetError(f"{dataset.reference} has no song in its split {split}")
    names = [path.rpartition("/")[2] for path in rows["path"].to_pylist()]
    notes = _notes_of(dataset, rows["piece"].to_pylist())
    augment = from_json(AugmentConfig, stored["augment"]) if augmented else NO_AUGMENTATION
    songs = _varied_songs(tokenizer, augment, notes, rows, names)
    made = datetime.datetime.fromtimestamp(dataset.manifest_path.stat().st_mtime, datetime.UTC)
    text = tokenizer.dataset_text(
        songs,
        dataset=dataset.reference,
        created_on=f"{made:%Y-%m-%d}",
        median_pitch=stored["parse"]["read"].get("median_pitch", 0),
        transpositions=[semitones for semitones in augment.transpositions if semitones],
        has_flipped=augment.flip,
    )
    return text, len(songs)


def _notes_of(dataset: DatasetVersion, pieces: list[str]) -> NoteBatch:
    shards = [dataset.folder / songs for songs in dataset.manifest["songs"]]
    wanted = set(pieces)
    found = [
        piece for shard in shards for piece in read_table(shard, ["piece"])["piece"].to_pylist() if piece in wanted
    ]
    place = {piece: number for number, piece in enumerate(found)}
    notes = NoteBatch.joined(read_notes(shard, pieces) for shard in shards)
    return notes.take(np.array([place[piece] for piece in pieces]))


def _varied_songs(
    tokenizer: OptimusTxtTokenizer, augment: AugmentConfig, notes: NoteBatch, rows: pa.Table, names: list[str]
) -> list[str]:
    """Return the songs of the ledger's rows, those of the training split in all variants that differ as text."""
    pieces, is_train = rows["piece"].to_pylist(), np.array(pc.equal(rows["split"], "train").to_pylist())
    songs = list[tuple[int, str]]()
    for config, places in ((augment, np.flatnonzero(is_train)), (NO_AUGMENTATION, np.flatnonzero(~is_train))):
        varied, owner = vary_notes(config, notes.take(places), [pieces[place] for place in places])
        owners = places[owner].tolist()
        songs += zip(owners, tokenizer.songs(varied, [names[place] for place in owners]), strict=True)
    return [song for _, song in sorted(dict.fromkeys(songs), key=lambda song: song[0])]
