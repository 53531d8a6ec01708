"""The styles of the band pieces: drum grids, bass lines, chord rhythms, chord loops and instruments, all as tables."""

from dataclasses import dataclass

from bench.sample_corpus.melody import Meter

# General MIDI drum keys.
KICK, STICK, SNARE, LOW_TOM, CLOSED_HAT, MID_TOM, PEDAL_HAT, OPEN_HAT, HIGH_TOM, CRASH, RIDE = (
    36, 37, 38, 43, 42, 47, 44, 46, 50, 49, 51,
)  # fmt: skip

Grid = dict[int, str]  # drum key -> one character a sixteenth: X loud, x plain, o soft, . nothing


@dataclass(frozen=True, slots=True)
class BandStyle:
    """What a band plays under a tune; bass and chord rhythms are for one bar, in quarter notes.

    The bass plays `1` the chord's bass, `3` its third, `5` its fifth, `8` the octave, `a` a step towards what follows.
    """

    name: str
    meter: Meter
    quarters_per_minute: tuple[float, float]
    grids: tuple[Grid, Grid]  # of the first section and of the others
    bass: tuple[tuple[float, float, str], ...]  # (offset, duration, what)
    hits: tuple[tuple[float, float], ...]  # (offset, duration) of the chords
    instruments: tuple[int, int, tuple[int, ...]]  # bass, chords, and those that may lead
    loops: str  # name of its chord loops
    character: str  # of the melody's rhythm
    pad: int | None = None  # an instrument that holds the chords
    swings: bool = False


# Four chords, one a bar. The last one leads back; sections that close put the tonic there.
LOOPS: dict[str, dict[bool, tuple[tuple[str, str, str, str], ...]]] = {
    "pop": {
        False: (("I", "V", "vi", "IV"), ("I", "vi", "IV", "V"), ("vi", "IV", "I", "V"), ("I", "iii", "IV", "V"),
                ("I", "IV", "ii", "V"), ("IV", "V", "vi", "V")),
        True: (("i", "VI", "III", "VII"), ("i", "VII", "VI", "V"), ("i", "iv", "VII", "V"), ("VI", "VII", "i", "V"),
               ("i", "iv", "VI", "V")),
    },
    "rock": {
        False: (("I", "bVII", "IV", "V"), ("I", "IV", "I", "V"), ("I", "IV", "bVII", "V"), ("vi", "V", "IV", "V")),
        True: (("i", "VII", "VI", "VII"), ("i", "III", "VII", "iv"), ("i", "VI", "VII", "V"), ("i", "iv", "i", "V")),
    },
    "jazz": {
        False: (("I7", "vi7", "ii7", "V7"), ("ii7", "V7", "I7", "vi7"), ("iii7", "vi7", "ii7", "V7"),
                ("I7", "V7/ii", "ii7", "V7"), ("IV7", "iv7", "iii7", "V7")),
        True: (("i7", "iv7", "iio7", "V7"), ("iv7", "VII7", "III7", "V7"), ("i7", "VI7", "iio7", "V7")),
    },
    "plain": {
        False: (("I", "IV", "V7", "I"), ("I", "V7", "I", "V"), ("I", "ii6", "V7", "V"), ("IV", "I", "V7", "V7")),
        True: (("i", "iv", "V7", "i"), ("i", "V7", "i", "V"), ("iv", "i", "V7", "V7"), ("i", "iio6", "V7", "V")),
    },
}  # fmt: skip

BAND_STYLES = (
    BandStyle("rock", (4, 4), (112, 132),
              ({KICK: "x.......x.x.....", SNARE: "....X.......X...", CLOSED_HAT: "x.x.x.x.x.x.x.x."},
               {KICK: "x.x.....x.x...x.", SNARE: "....X.......X...", OPEN_HAT: "x...x...x...x..."}),
              ((0, 1, "1"), (1, 0.5, "1"), (1.5, 1, "1"), (2.5, 0.5, "5"), (3, 1, "a")), ((0, 1.5), (1.5, 2.5)),
              (33, 29, (30, 80, 65)), "rock", "syncopated"),
    BandStyle("bossa", (4, 4), (118, 136),
              ({KICK: "x.....x.x.....x.", STICK: "x.....x.....x...", CLOSED_HAT: "x...x...x...x..."},
               {KICK: "x.....x.x.....x.", STICK: "..x...x...x.....", CLOSED_HAT: "x.o.x.o.x.o.x.o."}),
              ((0, 1.5, "1"), (1.5, 0.5, "5"), (2, 1.5, "5"), (3.5, 0.5, "a")), ((0, 1), (1.5, 1), (3, 0.5)),
              (32, 24, (73, 66, 11)), "jazz", "syncopated"),
    BandStyle("slow-dance", (6, 8), (84, 100),
              ({KICK: "x.......x...", SNARE: "......X.....", CLOSED_HAT: "x.x.x.x.x.x."},
               {KICK: "x.......x.x.", SNARE: "......X.....", RIDE: "x.x.x.x.x.x."}),
              ((0, 1, "1"), (1, 0.5, "5"), (1.5, 1, "8"), (2.5, 0.5, "a")), ((0, 1.5), (1.5, 1.5)),
              (33, 4, (25, 65, 52, 40)), "pop", "flowing", 48),
    BandStyle("jazz-waltz", (3, 4), (144, 168),
              ({RIDE: "x...x.x.x...", PEDAL_HAT: "....x...x...", KICK: "x..........."},
               {RIDE: "x...x.x.x.x.", PEDAL_HAT: "....x...x...", KICK: "x.....o....."}),
              ((0, 1, "1"), (1, 1, "5"), (2, 1, "a")), ((0, 1), (1.5, 1)),
              (32, 0, (11, 66, 73, 26)), "jazz", "syncopated", None, True),
    BandStyle("march", (2, 4), (104, 120),
              ({KICK: "x.......", SNARE: "x.o.x.oo", CRASH: "........"}, {KICK: "x...x...", SNARE: "..o.x.xx"}),
              ((0, 0.5, "1"), (1, 0.5, "5")), ((0.5, 0.4), (1.5, 0.4)), (58, 60, (56, 72, 71)), "plain", "lively"),
    BandStyle("swing", (4, 4), (132, 156),
              ({RIDE: "x...x.x.x...x.x.", PEDAL_HAT: "....x.......x..."},
               {RIDE: "x...x.x.x...x.x.", PEDAL_HAT: "....x.......x...", SNARE: "......o.......o."}),
              ((0, 1, "1"), (1, 1, "3"), (2, 1, "5"), (3, 1, "a")), ((0, 1), (1.5, 1)),
              (32, 0, (66, 56, 11, 71)), "jazz", "syncopated", None, True),
    BandStyle("five", (5, 4), (148, 168),
              ({KICK: "x.....x.....x.......", SNARE: "............X.......", RIDE: "x...x...x...x...x..."},
               {KICK: "x.....x.....x...x...", SNARE: "....o.......X.......", CLOSED_HAT: "x...x.x.x...x...x.x."}),
              ((0, 1.5, "1"), (1.5, 1.5, "5"), (3, 1, "8"), (4, 1, "a")), ((0, 1), (1.5, 1), (3, 1.5)),
              (35, 0, (65, 71, 26)), "pop", "syncopated"),
    BandStyle("disco", (4, 4), (114, 126),
              ({KICK: "x...x...x...x...", SNARE: "....X.......X...", OPEN_HAT: "..x...x...x...x."},
               {KICK: "x...x...x...x...", SNARE: "....X.......X.o.", OPEN_HAT: "..x...x...x...x."}),
              ((0, 0.5, "1"), (0.5, 0.5, "8"), (1, 0.5, "1"), (1.5, 0.5, "8"), (2, 0.5, "1"), (3, 0.5, "5"),
               (3.5, 0.5, "a")),
              ((0.5, 0.5), (2.5, 0.5)), (38, 27, (81, 61, 56)), "pop", "syncopated", 48),
    BandStyle("reggae", (4, 4), (76, 92),
              ({KICK: "........x.......", STICK: "........X.......", CLOSED_HAT: "x.x.x.x.x.x.x.x."},
               {KICK: "x.......x.......", SNARE: "........X.....o.", CLOSED_HAT: "x.x.x.x.x.x.x.x."}),
              ((0, 1, "1"), (1.5, 0.5, "1"), (2, 1, "5"), (3.5, 0.5, "a")),
              ((0.5, 0.3), (1.5, 0.3), (2.5, 0.3), (3.5, 0.3)),
              (33, 16, (75, 22, 27)), "pop", "syncopated"),
    BandStyle("country-waltz", (3, 4), (112, 132),
              ({KICK: "x...........", STICK: "....x...x..."},
               {KICK: "x...........", SNARE: "....x...x...", CLOSED_HAT: "x.x.x.x.x.x."}),
              ((0, 2, "1"), (2, 1, "5")), ((1, 0.8), (2, 0.8)), (32, 25, (40, 22, 110)), "plain", "flowing", 21),
    BandStyle("funk", (4, 4), (92, 106),
              ({KICK: "x.....x...x.....", SNARE: "....X..o....X...", CLOSED_HAT: "x.x.x.x.x.x.x.x."},
               {KICK: "x..x..x...x.....", SNARE: "....X..o.o..X...", CLOSED_HAT: "x.x.x.x.x.x.x.x."}),
              ((0, 0.5, "1"), (0.75, 0.25, "8"), (1.5, 0.5, "1"), (2.5, 0.5, "5"), (3, 0.25, "8"), (3.5, 0.5, "a")),
              ((0.5, 0.25), (1.75, 0.5), (3.25, 0.25)), (36, 7, (61, 66, 16)), "rock", "syncopated"),
    BandStyle("night-drive", (4, 4), (96, 112),
              ({KICK: "x...x...x...x...", SNARE: "....X.......X..."},
               {KICK: "x.....x.x.......", SNARE: "....X.......X...", CLOSED_HAT: "x.x.x.x.x.x.x.x."}),
              tuple((step / 2, 0.5, "1" if step % 4 < 3 else "8") for step in range(8)), ((0, 4),),
              (38, 88, (81, 80, 87)), "pop", "flowing"),
    BandStyle("polka", (2, 4), (108, 124),
              ({KICK: "x...x...", SNARE: "..x...x."}, {KICK: "x...x...", SNARE: "..x...x.", CLOSED_HAT: "x.x.x.x."}),
              ((0, 0.5, "1"), (1, 0.5, "5")), ((0.5, 0.4), (1.5, 0.4)), (32, 21, (71, 40, 22)), "plain", "lively"),
)  # fmt: skip
