"""The built-in sample corpus: some 200 pieces written by the composers of this folder, the same bytes on every run."""

import os
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import ConfigError
from tasks.music.corpus.band import compose_band
from tasks.music.corpus.band_styles import BAND_STYLES
from tasks.music.corpus.chorale import compose_chorale
from tasks.music.corpus.dice import Dice
from tasks.music.corpus.harmony import Key
from tasks.music.corpus.melody import Meter
from tasks.music.corpus.midi_file import Part, Piece, encode_midi
from tasks.music.corpus.piano import STYLES, compose_piano

RESOLUTIONS = (96, 120, 220, 384, 480, 960)  # ticks per quarter note
# Twenty pieces: eight chorales, seven for piano, five for band; the order mixes them so that few pieces show all kinds.
FAMILIES = "CPBCPCPBCPCPBCPBCPCB"
CHORALE_METERS: tuple[Meter, ...] = ((4, 4), (3, 4), (4, 4), (6, 8), (4, 4), (3, 4), (2, 4), (4, 4), (3, 4), (5, 4))


def write_corpus(folder: Path, n_pieces: int = 200, seed: int = 0, with_flaws: bool = False) -> list[Path]:
    """Write the sample corpus into a folder and return its paths; files that hold the right bytes stay untouched.

    Args:
        n_pieces: 0 or more; piece i is the same whatever the number.
        seed: 0 to 2**63 - 1; another seed is another corpus.
        with_flaws: also write `flawed/` with an exact duplicate, a truncated file, a web page, an empty file and a file
            without notes; their paths come last.
    Raises:
        ConfigError: `n_pieces` or `seed` is outside its range.
        OSError: the folder cannot be written.
    """
    written = []
    for name, data in pieces(n_pieces, seed):
        written.append(_write_if_new(folder / name, data))
    if with_flaws:
        written += [_write_if_new(folder / "flawed" / name, data) for name, data in flawed_files(seed)]
    return written


def pieces(n_pieces: int = 200, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, MIDI bytes) of each piece of the sample corpus; arguments and errors as in `write_corpus`."""
    if n_pieces < 0:
        raise ConfigError(f"n_pieces={n_pieces} is below 0 (sample corpus)")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed} is outside 0 to 2**63 - 1 (sample corpus)")
    for index in range(n_pieces):
        yield _write_piece(seed, index)


def flawed_files(seed: int = 0) -> list[tuple[str, bytes]]:
    """Return (file name, bytes) of five files that an importer must turn down."""
    whole, other = _write_piece(seed, 0)[1], _write_piece(seed, 1)[1]
    page = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"
    silence = Piece("Silence", [Part("Nobody", 0)], [(0.0, 120.0)], [(0.0, 4, 4)])
    return [
        ("exact-duplicate.mid", whole),
        ("truncated.mid", other[: len(other) // 2]),
        ("web-page.mid", page),
        ("empty.mid", b""),
        ("without-notes.mid", encode_midi(silence)),
    ]


def _write_piece(seed: int, index: int) -> tuple[str, bytes]:
    dice = Dice(seed, index)
    family = FAMILIES[index % len(FAMILIES)]
    place = index // len(FAMILIES) * FAMILIES.count(family) + FAMILIES[: index % len(FAMILIES)].count(family)
    key = Key(dice.whole(0, 11), dice.chance(0.45))
    if family == "C":
        piece, kind = compose_chorale(dice, key, CHORALE_METERS[place % len(CHORALE_METERS)]), "chorale"
    elif family == "P":
        style = STYLES[place % len(STYLES)]
        piece, kind = compose_piano(dice, key, style), "piano"
    else:
        style = BAND_STYLES[place % len(BAND_STYLES)]
        piece, kind = compose_band(dice, key, style), "band"
    _vary_file(dice, piece)
    middle = "" if family == "C" else f"-{style.name}"
    return f"{kind}-{index:03d}{middle}-{key.name}.mid", encode_midi(piece)


def _vary_file(dice: Dice, piece: Piece) -> None:
    """Give the file one of the many lawful shapes that files have in the wild."""
    piece.ticks_per_quarter = dice.pick(RESOLUTIONS)
    piece.midi_type = dice.pick((0, 1, 1))
    piece.running_status = dice.chance(0.6)
    piece.later_tempos_in_first_part = dice.chance(0.3)
    if dice.chance(0.3):
        piece.key_signatures = []


def _write_if_new(path: Path, data: bytes) -> Path:
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
