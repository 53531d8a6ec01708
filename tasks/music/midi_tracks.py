"""The tracks of a MIDI file and the events of each, for compiled code and for any other."""

from numba import njit

from tasks.music import midi_events as events


@njit(cache=True, nogil=True)
def tracks_of(data):
    """Yield where the events of each track chunk begin and end, of a file that our reader accepts."""
    begin, file_end = 0, len(data)
    if events._is(data, 0, 82, 73, 70, 70):  # RIFF
        begin, file_end = events._unwrap_riff(data, 0, file_end)
    position = begin + 8 + events._big(data, begin + 4, 4)
    while position + 8 <= file_end and not events._is(data, position, 77, 84, 104, 100):  # MThd
        end = min(position + 8 + events._big(data, position + 4, 4), file_end)
        if events._is(data, position, 77, 84, 114, 107):  # MTrk
            yield position + 8, end
        position = end


@njit(cache=True, nogil=True)
def events_of(data, position, end):
    """Yield status, kind of meta event, where the body begins and where it ends, of each event up to a damaged one."""
    running = 0
    while position < end:
        code, _, status, kind, body, position = events._next_event(data, position, end, running)
        if code != events.OK:
            break
        if status < 0xF0:
            running = status
        yield status, kind, body, position
