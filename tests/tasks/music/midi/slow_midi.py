"""A slow reader of well-formed events that does one event after another, to hold the compiled one against.

All tracks are merged by time; events of one tick keep the order of the bytes. Each channel of each port has a state,
and each message does to it what `docs/data-format.md` says.
"""

from collections import Counter
from dataclasses import dataclass, field

from tasks.music.midi.file_bytes import variable_length
from tests.builders import END_OF_TRACK, smf

Event = tuple[int, bytes]  # ticks since the event before, message

GS_CHANNELS = [9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15]


@dataclass(eq=False)
class Note:
    """A key that went down: in which track and on which channel, and the tick when it came up or None."""

    onset: int
    pitch: int
    velocity: int
    track: int
    channel: tuple[int, int]  # port, channel
    is_drum: bool
    end: int | None = None


@dataclass
class Channel:
    """What a channel knows at a moment."""

    number: int
    bank: int | None = None
    pedal_since: int | None = None
    is_rhythm: bool = field(init=False)
    is_drum: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_rhythm = self.is_drum = self.number == 9


@dataclass
class Reading:
    """What was read.

    Args:
        notes: those that ended: onset, duration, pitch, velocity, is_drum, pedal spans of their channel.
        n_unended: how many others there are.
    """

    notes: Counter[tuple[int, int, int, int, bool, tuple[tuple[int, int], ...]]]
    n_unended: int


def bytes_of(tracks: list[list[Event]], ports: list[int], file_format: int) -> bytes:
    """Return the file; each track begins with its port."""
    return smf(
        *(
            b"\0\xff\x21\x01" + bytes([port]) + b"".join(variable_length(shift) + said for shift, said in events)
            + END_OF_TRACK
            for port, events in zip(ports, tracks, strict=True)
        ),
        file_format=file_format,
    )  # fmt: skip


def read_slowly(tracks: list[list[Event]], ports: list[int], file_format: int) -> Reading:
    """Return what the events mean; in format 2 each track is a piece of its own behind the one before."""
    if file_format != 2:
        return _Instrument().play(tracks, ports, 0)
    whole, start = Reading(Counter(), 0), 0
    for events, port in zip(tracks, ports, strict=True):
        piece = _Instrument().play([events], [port], start)
        whole.notes += piece.notes
        whole.n_unended += piece.n_unended
        start += sum(shift for shift, _ in events)
    return whole


class _Instrument:
    def __init__(self) -> None:
        self.channels = {(port, number): Channel(number) for port in range(4) for number in range(16)}
        self.modes = dict.fromkeys(range(4), "gm")
        self.spans: dict[tuple[int, int], list[tuple[int, int]]] = {place: [] for place in self.channels}
        self.notes: list[Note] = []
        self.sounding: list[Note] = []  # keys that are down, in the order in which they went down

    def play(self, tracks: list[list[Event]], ports: list[int], start: int) -> Reading:
        merged = []
        for track, events in enumerate(tracks):
            now = start
            for shift, said in events:
                now += shift
                merged.append((now, track, said))
        for now, track, said in sorted(merged, key=lambda event: event[0]):  # stable
            self.hear(now, track, ports[track], said)
        ended = [note for note in self.notes if note.end is not None]
        for note in ended:
            note.end = max(note.end or 0, note.onset + 1)  # no note has no length
        music_end = max((note.end or 0 for note in ended), default=0)
        for place, channel in self.channels.items():
            if channel.pedal_since is not None and channel.pedal_since < music_end:
                self.spans[place].append((channel.pedal_since, music_end))
        rows = Counter(
            (n.onset, (n.end or 0) - n.onset, n.pitch, n.velocity, n.is_drum, tuple(self.spans[n.channel]))
            for n in ended
        )
        return Reading(rows, len(self.notes) - len(ended))

    def hear(self, now: int, track: int, port: int, said: bytes) -> None:
        if said[0] == 0xF0:
            return self.hear_exclusive(now, track, port, said[2:])
        place = (port, said[0] & 15)
        channel, message = self.channels[place], said[0] & 0xF0
        if message == 0x90 and said[2] > 0:
            self.notes.append(Note(now, said[1], said[2], track, place, channel.is_drum))
            self.sounding.append(self.notes[-1])
        elif message in (0x80, 0x90):
            key = (track, place, said[1])
            for note in self.sounding:
                if (note.track, note.channel, note.pitch) == key:
                    self.lift_key(now, note)
                    break
        elif message == 0xC0:
            self.choose_program(port, channel)
        elif said[1] == 0:
            channel.bank = said[2]
        elif said[1] == 64:
            self.move_pedal(now, place, is_down=said[2] >= 64)
        elif said[1] == 121:
            self.move_pedal(now, place, is_down=False)
        elif said[1] == 120:
            self.lift_keys(now, track, place)
            if channel.pedal_since is not None:
                self.move_pedal(now, place, is_down=False)
                self.move_pedal(now, place, is_down=True)
        elif said[1] >= 123:
            self.lift_keys(now, track, place)

    def lift_keys(self, now: int, track: int, place: tuple[int, int]) -> None:
        for note in list(self.sounding):
            is_of_this_tick = note.onset == now and note.track != track  # no order between tracks within a tick
            if note.channel == place and not is_of_this_tick:
                self.lift_key(now, note)

    def lift_key(self, now: int, note: Note) -> None:
        note.end = now
        self.sounding.remove(note)

    def move_pedal(self, now: int, place: tuple[int, int], *, is_down: bool) -> None:
        channel = self.channels[place]
        if is_down and channel.pedal_since is None:
            channel.pedal_since = now
        elif not is_down and channel.pedal_since is not None:
            if now > channel.pedal_since:
                self.spans[place].append((channel.pedal_since, now))
            channel.pedal_since = None

    def choose_program(self, port: int, channel: Channel) -> None:
        if channel.bank is None:
            return
        if self.modes[port] == "gs":
            channel.is_drum = channel.is_rhythm
        elif self.modes[port] == "xg":
            channel.is_drum = channel.bank in (120, 126, 127)
        else:
            known = {120: True, 126: True, 127: True, 121: False}
            channel.is_drum = known.get(channel.bank, channel.is_rhythm)

    def hear_exclusive(self, now: int, track: int, port: int, body: bytes) -> None:
        if body[0] == 0x7E:
            self.reset(now, track, port, "gm")
        elif body[0] == 0x43 and body[3] == 0:
            self.reset(now, track, port, "xg")
        elif body[0] == 0x43:
            self.make_rhythm(port, body[4], body[6])
        elif body[6] == 0x7F:
            self.reset(now, track, port, "gm" if body[7] == 0x7F else "gs")
        else:
            self.make_rhythm(port, GS_CHANNELS[body[5] & 15], body[7])

    def reset(self, now: int, track: int, port: int, mode: str) -> None:
        self.modes[port] = mode
        for number in range(16):
            self.lift_keys(now, track, (port, number))
            self.move_pedal(now, (port, number), is_down=False)
            self.channels[port, number] = Channel(number)

    def make_rhythm(self, port: int, number: int, value: int) -> None:
        channel = self.channels[port, number]
        channel.is_rhythm = channel.is_drum = value > 0
        channel.bank = None
