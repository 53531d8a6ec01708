"""The sample corpus: 200 pieces written by the composers of this folder, the same bytes on every run.

The project ships its output, `tasks/ingest/sources/sample_corpus.tar.xz`. To write that file again after a change:

    python -m bench.sample_corpus.writer
"""

import io
import lzma
import tarfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from bench.sample_corpus.band import compose_band
from bench.sample_corpus.band_styles import BAND_STYLES
from bench.sample_corpus.chorale import compose_chorale
from bench.sample_corpus.dice import Dice
from bench.sample_corpus.harmony import Key
from bench.sample_corpus.melody import Meter
from bench.sample_corpus.midi_file import Part, Piece, encode_midi
from bench.sample_corpus.piano import STYLES, compose_piano
from tasks.errors import ConfigError

RESOLUTIONS = (96, 120, 220, 384, 480, 960)  # ticks per quarter note
# Twenty pieces: eight chorales, seven for piano, five for band; the order mixes them so that few pieces show all kinds.
FAMILIES = "CPBCPCPBCPCPBCPBCPCB"
CHORALE_METERS: tuple[Meter, ...] = ((4, 4), (3, 4), (4, 4), (6, 8), (4, 4), (3, 4), (2, 4), (4, 4), (3, 4), (5, 4))


README = """\
The sample corpus of Orchestrion: 200 pieces of music as MIDI files; flawed/ holds five files that an importer refuses.
Maker: the Orchestrion project, with its own program (bench/sample_corpus in its repository), from no other music.
Licence: Apache License 2.0 (SPDX: Apache-2.0), https://www.apache.org/licenses/LICENSE-2.0
"""


def build_archive() -> bytes:
    """Return the archive that the project ships: a tar file in xz format with README.txt, the pieces and the flaws."""
    files = [("README.txt", README.encode()), *pieces(), *((f"flawed/{name}", data) for name, data in flawed_files())]
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)  # time, owner and mode are constants
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return lzma.compress(tar_bytes.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def pieces(n_pieces: int = 200, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, MIDI bytes) of each piece of the sample corpus.

    Args:
        n_pieces: 0 or more; piece i is the same whatever the number.
        seed: 0 to 2**63 - 1; another seed is another corpus.
    Raises:
        ConfigError: `n_pieces` or `seed` is outside its range.
    """
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


if __name__ == "__main__":
    Path(str(resources.files("tasks.ingest.sources") / "sample_corpus.tar.xz")).write_bytes(build_archive())
