"""Windows of `mmm` joined on bar lines: pieces in bars, and grammars of windows that begin with bars given before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.errors import ConfigError
from tasks.music.arrays import IntArray
from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.mmm.grammar import BETWEEN_BARS, N_OUTSIDE
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer
from tasks.music.tokenizers.mmm.vocabulary import END, FOUR_FOUR, START, UNKNOWN, Kind, Vocabulary

Bar = tuple[int, ...]  # from its BAR_START to its BAR_END


@dataclass(frozen=True, slots=True)
class Track:
    """A track in bars; `head` is all before the first one, such as TRACK_START INST=0."""

    head: tuple[int, ...]
    bars: tuple[Bar, ...]


def tracks_of(ids: ArrayLike, words: Vocabulary) -> list[Track]:
    """Return the tracks of a piece; a last bar without its end is left out, and a last track without a bar."""
    tracks = list[Track]()
    head, bars, bar = list[int](), list[Bar](), list[int]()
    for token in np.asarray(ids).tolist():
        kind = words.kind[token]
        if kind == Kind.TRACK_START:
            head, bars, bar = [token], [], []
        elif kind == Kind.TRACK_END:
            tracks.append(Track(tuple(head), tuple(bars)))
            head = []
        elif kind == Kind.BAR_START:
            bar = [token]
        elif bar:
            bar.append(token)
            if kind == Kind.BAR_END:
                bars, bar = [*bars, tuple(bar)], []
        elif head:
            head.append(token)
    return tracks + ([Track(tuple(head), tuple(bars))] if head and bars else [])


def piece_of(tracks: Sequence[Track], words: Vocabulary) -> IntArray:
    """Return the ids of a piece of whole tracks."""
    first, foot = _frame_of(words)
    track_end = int(words.of_kind(Kind.TRACK_END)[0])
    body = [token for track in tracks for token in (*track.head, *(t for bar in track.bars for t in bar), track_end)]
    return np.array([*first, *body, *foot], np.int64)


def filled_up(tracks: Sequence[Track], n_bars: int, bar_start: int, words: Vocabulary) -> tuple[list[Track], list[int]]:
    """Return tracks of `n_bars` bars, with empty ones where bars are missing, and the number of those of each track."""
    empty: Bar = (bar_start, int(words.of_kind(Kind.BAR_END)[0]))
    n_missing = [n_bars - len(track.bars) for track in tracks]
    whole = [replace(track, bars=track.bars + n * (empty,)) for track, n in zip(tracks, n_missing, strict=True)]
    return whole, n_missing


def bar_start_of(ids: ArrayLike, words: Vocabulary) -> int:
    """Return the id that begins the first bar of a piece; that of a 4/4 bar where there is none."""
    starts = words.of_kind(Kind.BAR_START)
    found = [token for token in np.asarray(ids).tolist() if token in starts]
    return found[0] if found else int(starts[words.value[starts] == FOUR_FOUR][0])


def window_grammar(
    tokenizer: MmmTokenizer, n_bars: int, bar_start: int, given: Sequence[Track] = (), n_tracks: int = 0
) -> Grammar:
    """Return the grammar of windows of `n_bars` bars in every track, all of them begun by the id `bar_start`.

    Args:
        given: tracks that the window has and no others, and the bars that each begins with; none: tracks are free.
        n_tracks: of free tracks; 0: one or more.
    Raises:
        ConfigError: a number of tracks that the encoding does not have.
    """
    if n_tracks > tokenizer.config.max_tracks:
        raise ConfigError(f"n_tracks={n_tracks} outside 1-{tokenizer.config.max_tracks}, max_tracks of the encoding")
    words, table = tokenizer.words, _Table(tokenizer, bar_start)
    first, foot = _frame_of(words)
    track_end = words.of_kind(Kind.TRACK_END)
    table.add_words(*first)
    for track in given:
        table.add_words(*track.head, *(token for bar in track.bars for token in bar))
        table.add_bars(n_bars - len(track.bars))
        table.add_words(track_end)
    for _ in range(0 if given else n_tracks or 1):
        table.add_track(n_bars)
        table.add_words(track_end)
    if not given and not n_tracks:
        loop = len(table.rows)
        table.add_track(n_bars)
        table.add_words(track_end)
        table.rows[-1][track_end] = loop
        table.rows[loop][foot[0]] = len(table.rows) + 1
    table.add_words(*foot)
    return replace(tokenizer.grammar, next_state_SV=table.finished(), start_state=0)


def _frame_of(words: Vocabulary) -> tuple[list[int], list[int]]:
    """Return the ids before the first track and those after the last one."""
    header = [int(token) for kind in (Kind.PIECE_START, Kind.STYLE, Kind.GENRE) for token in words.of_kind(kind)]
    return [START, *header], [*words.of_kind(Kind.PIECE_END).tolist(), END]


class _Table:
    """The states of a grammar, added in the order in which pieces walk through them."""

    def __init__(self, tokenizer: MmmTokenizer, bar_start: int) -> None:
        states = tokenizer.grammar.next_state_SV
        self.words, self.bar_start, self.opening = tokenizer.words, bar_start, int(states[BETWEEN_BARS, bar_start])
        self.in_bar = states[N_OUTSIDE:].astype(np.int32)
        self.in_bar[:, UNKNOWN] = -1
        self.rows = list[NDArray[np.int32]]()

    def add_words(self, *words: Any) -> None:
        """Add a state for each word, an id or several to choose from, that allows nothing else."""
        for ids in words:
            row = np.full(self.words.size, -1, np.int32)
            row[ids] = len(self.rows) + 1
            self.rows.append(row)

    def add_track(self, n_bars: int) -> None:
        """Add the states of a track of any instrument, up to its end."""
        self.add_words(self.words.of_kind(Kind.TRACK_START), self.words.of_kind(Kind.INST))
        if len(density := self.words.of_kind(Kind.DENSITY)):
            self.add_words(density)
        self.add_bars(n_bars)

    def add_bars(self, n_bars: int) -> None:
        """Add the states of some bars of any contents."""
        for _ in range(n_bars):
            begin = len(self.rows) + 1  # the first state inside of the bar
            row = np.full(self.words.size, -1, np.int32)
            row[self.bar_start] = begin + self.opening - N_OUTSIDE
            inner = np.where(self.in_bar >= N_OUTSIDE, self.in_bar - N_OUTSIDE + begin, -1)
            inner[self.in_bar == BETWEEN_BARS] = begin + len(inner)
            self.rows += [row, *inner]

    def finished(self) -> NDArray[np.int32]:
        """Return the table, with a last state in which nothing follows."""
        return np.stack([*self.rows, np.full(self.words.size, -1, np.int32)])
