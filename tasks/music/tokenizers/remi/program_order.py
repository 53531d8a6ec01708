"""The two published orders of `remi` ids, and the way from one to the other for ids, names and weights.

MidiTok 3.0 gives the program of drums the first id of all programs, 3.1 the last one. All other ids are equal as long
as drums have no pitches of their own and time signatures no ids, as in the published settings of the Hourglass:

| id | 3.0 | 3.1, and here |
|---|---|---|
| 0-218 | equal | equal |
| 219 | Program_-1 (drums) | Program_0 |
| 220-346 | Program_0 to Program_126 | Program_1 to Program_127 |
| 347 | Program_127 | Program_-1 (drums) |
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.music.arrays import IntArray
from tasks.music.tokenizers.base import require_ids
from tasks.music.tokenizers.remi.vocabulary import N_PROGRAMS, Kind, RemiVocabulary


def ids_to_3_0(ids: ArrayLike, vocabulary: RemiVocabulary) -> IntArray:
    """Return ids of this vocabulary as those of MidiTok 3.0; ValueError where one is outside of it."""
    return _order(vocabulary)[_require_integers(ids, vocabulary)]


def ids_from_3_0(ids: ArrayLike, vocabulary: RemiVocabulary) -> IntArray:
    """Return ids of MidiTok 3.0 as those of this vocabulary; ValueError where one is outside of it."""
    return np.argsort(_order(vocabulary))[_require_integers(ids, vocabulary)]


def names_of_3_0(vocabulary: RemiVocabulary) -> list[str]:
    """Return the name of each id of MidiTok 3.0."""
    return rows_to_3_0(np.array(vocabulary.names), vocabulary).tolist()


def rows_to_3_0(rows: NDArray[Any], vocabulary: RemiVocabulary) -> NDArray[Any]:
    """Return weights with a row for each id here, such as an embedding, with rows in the order of MidiTok 3.0."""
    return _require_rows(rows, vocabulary)[np.argsort(_order(vocabulary))]


def rows_from_3_0(rows: NDArray[Any], vocabulary: RemiVocabulary) -> NDArray[Any]:
    """Return weights with a row for each id of MidiTok 3.0, an output's bias too, with rows in the order here."""
    return _require_rows(rows, vocabulary)[_order(vocabulary)]


def _order(vocabulary: RemiVocabulary) -> IntArray:
    """Return the id in MidiTok 3.0 of each id here."""
    if vocabulary.config.time_signatures or vocabulary.config.drum_pitches:
        raise ValueError(
            "the order of MidiTok 3.0 is known without time signatures and pitches of drums alone;"
            " set time_signatures=False and drum_pitches=False"
        )
    order, first = np.arange(len(vocabulary)), vocabulary.first[Kind.PROGRAM]
    programs = slice(first, first + N_PROGRAMS)
    order[programs] = np.roll(order[programs], -1)
    return order


def _require_integers(ids: ArrayLike, vocabulary: RemiVocabulary) -> IntArray:
    found = np.asarray(ids)
    if found.size and found.dtype.kind not in "iu":
        raise ValueError(f"ids of type {found.dtype} are no integers")
    return require_ids(found, len(vocabulary))


def _require_rows(rows: NDArray[Any], vocabulary: RemiVocabulary) -> NDArray[Any]:
    if not rows.ndim or len(rows) != len(vocabulary):
        raise ValueError(
            f"weights of shape {list(rows.shape)}, but the vocabulary has {len(vocabulary)} ids, a row each"
        )
    return rows
