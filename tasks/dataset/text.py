"""A dataset as readable text: a header and every song, in the encoding of Optimus VIRTUOSO."""

import datetime
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from tasks.config.overrides import apply_overrides
from tasks.dataset.encode import read_notes
from tasks.dataset.versions import DatasetVersion
from tasks.errors import DatasetError
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.optimus.characters import OptimusTxtConfig
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtTokenizer
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.storage.parquet import read_table


def dataset_text(dataset: DatasetVersion, overrides: Sequence[str] = (), split: str = "") -> tuple[str, int]:
    """Return the text of all accepted songs, or of one split's, in order of path, and how many songs it holds.

    Args:
        overrides: of the encoding's settings, which are those of the dataset where that is in `optimus_txt`, otherwise
            the defaults.
    Raises:
        ConfigError: an override does not fit.
        DatasetError: the split has no song.
    """
    form = dataset.manifest["encoder"]["settings"]
    own = tokenizer_from_json(form).config if form["name"] == OptimusTxtTokenizer.name else OptimusTxtConfig()
    config = apply_overrides(own, overrides)
    ledger = read_table(dataset.ledger, ["path", "piece", "status", "split"]).sort_by("path")
    rows = ledger.filter(pc.equal(ledger["status"], "accepted"))
    if split:
        rows = rows.filter(pc.equal(rows["split"], split))
    if not len(rows):
        raise DatasetError(f"{dataset.reference} has no song in its split {split}")
    pieces, paths = rows["piece"].to_pylist(), rows["path"].to_pylist()
    shards = [dataset.folder / songs for songs in dataset.manifest["songs"]]
    wanted = set(pieces)
    found = [
        piece for shard in shards for piece in read_table(shard, ["piece"])["piece"].to_pylist() if piece in wanted
    ]
    place = {piece: number for number, piece in enumerate(found)}
    notes = NoteBatch.joined(read_notes(shard, pieces) for shard in shards)
    ordered = notes.take(np.array([place[piece] for piece in pieces]))
    made = datetime.datetime.fromtimestamp(dataset.manifest_path.stat().st_mtime, datetime.UTC)
    text = OptimusTxtTokenizer(config).dataset_text(
        ordered, [path.rpartition("/")[2] for path in paths], dataset=dataset.reference, created_on=f"{made:%Y-%m-%d}"
    )
    return text, len(pieces)
