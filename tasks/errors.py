"""Errors that the caller can fix, and the reasons for rejected files."""

import re
from enum import StrEnum

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RejectReason(StrEnum):
    """Reason that keeps a file out of a dataset: the word in the ledger, the stage that gives it, and its meaning.

    `make docs` writes the table in `docs/data-format.md` from these members. The filters are tried in this order.
    """

    def __new__(cls, value: str, given_by: str, meaning: str) -> "RejectReason":
        member = str.__new__(cls, value)
        member._value_ = value
        member.given_by, member.meaning = given_by, meaning
        return member

    given_by: str
    meaning: str

    UNREADABLE_FILE = "unreadable_file", "scan", "no permission, a dangling or looping link, a pipe or device"
    UNREADABLE_FOLDER = "unreadable_folder", "scan", "a folder that cannot be listed; the row's path ends in `/`"
    VANISHED = "vanished", "scan", "gone since the scan of the same rebuild"
    CHANGED = "changed", "scan", "other contents than at the scan of the same rebuild"
    DOWNLOAD_FAILED = "download_failed", "scan", "an object that its store does not send"
    LICENCE_NOT_ALLOWED = "licence_not_allowed", "scan", "the stated licence is not one of `dataset.licences`"
    TOO_LARGE = "too_large", "scan", "a member of an archive or an object above `max_member_bytes`"
    UNSAFE_PATH = "unsafe_path", "archive", "the member has an absolute name, `..`, a drive letter or a NUL byte"
    LINK_ENTRY = "link_entry", "archive", "the member is a link, a device or a pipe"
    ENCRYPTED = "encrypted", "archive", "the member has a password"
    UNSUPPORTED_COMPRESSION = "unsupported_compression", "archive", "a zip method other than 0 and 8, or a sparse file"
    ARCHIVE_BOMB = "archive_bomb", "archive", "a member or the archive expands past a limit, or members share bytes"
    DAMAGED_MEMBER = "damaged_member", "archive", "checksum, size or header of the member do not fit"
    TRUNCATED_ARCHIVE = "truncated_archive", "archive", "the archive ends early; the detail says where"
    UNREADABLE_ARCHIVE = "unreadable_archive", "archive", "nothing of the archive can be read; the row is the archive's"
    EMPTY_FILE = "empty_file", "reader", "0 bytes"
    NOT_MIDI = "not_midi", "reader", "the file does not begin as MIDI does"
    TRUNCATED = "truncated", "reader", "a chunk is longer than the file"
    BAD_HEADER = "bad_header", "reader", "length or format of the header"
    BAD_CHUNK = "bad_chunk", "reader", "a chunk that is no track and does not fit"
    BAD_EVENT = "bad_event", "reader", "an event that MIDI does not define, or that passes the end of its track"
    UNSUPPORTED_DIVISION = "unsupported_division", "reader", "time in SMPTE frames"
    NO_NOTES = "no_notes", "reader", "no track, or no note-on"
    UNREADABLE_NOTES = "unreadable_notes", "reader", "no note-on is ever ended"
    OUT_OF_RANGE = "out_of_range", "reader", "a number beyond `dataset.parse.read` or what MIDI can hold"
    CRASHED = "crashed", "isolation", "its reader died; the detail names the signal or the exit status"
    TIMED_OUT = "timed_out", "isolation", "its reader passed `dataset.parse.seconds` of CPU time, or of sleeping"
    OUT_OF_MEMORY = "out_of_memory", "isolation", "its reader passed `dataset.parse.memory_bytes`"
    TOO_FEW_NOTES = "too_few_notes", "filter", "below `min_notes`"
    TOO_MANY_NOTES = "too_many_notes", "reader, filter", "above `dataset.parse.read.max_notes` or `max_notes`"
    TOO_SHORT = "too_short", "filter", "below `min_seconds`"
    TOO_LONG = "too_long", "reader, filter", "above `dataset.parse.read.max_bytes` or `.max_seconds`, or `max_seconds`"
    TOO_SPARSE = "too_sparse", "filter", "below `min_notes_per_second`"
    TOO_DENSE = "too_dense", "filter", "above `max_notes_per_second`"
    PITCH_OUT_OF_RANGE = "pitch_out_of_range", "filter", "a note below `pitch_min` or above `pitch_max`"
    TOO_POLYPHONIC = "too_polyphonic", "filter", "above `max_polyphony` or `max_mean_polyphony`"
    PROGRAM_NOT_ALLOWED = "program_not_allowed", "filter", "not in `programs_allowed`, or in `programs_refused`"
    DRUMS = "drums", "filter", "drum notes, with `drums=none`"
    NO_DRUMS = "no_drums", "filter", "no drum note, with `drums=only`"
    NOT_ONLY_DRUMS = "not_only_drums", "filter", "notes that are no drums, with `drums=only`"
    TIME_SIGNATURE_NOT_ALLOWED = "time_signature_not_allowed", "filter", "not in `time_signatures`"
    TOO_FEW_PITCHES = "too_few_pitches", "filter", "below `min_distinct_pitches`"
    MONOTONE = "monotone", "filter", "above `max_share_of_one_pitch`"
    STUCK_NOTE = "stuck_note", "filter", "a note above `max_note_seconds`"
    SAME_CONTENT = "same_content", "duplicate", "the same bytes as another file"
    NEAR_DUPLICATE = "near_duplicate", "duplicate", "nearly the notes of another file, with `near_duplicates=drop`"


class OrchestrionError(ValueError):
    """A caller's mistake or bad data: one line, no traceback, and the exit code of the command."""

    exit_code = 2

    def put_before(self, place: str) -> None:
        """Prefix the message with a place that only the caller knows."""
        self.args = (f"{place}: {self.args[0]}", *self.args[1:])


class ConfigError(OrchestrionError):
    """An unknown key, a wrong type or an impossible value in a config."""


class NotFound(OrchestrionError):
    """A path, dataset version, model or batch that does not exist."""


class BadScore(OrchestrionError):
    """A file that cannot be used as music; the detail names the value, the limit and the place."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)  # without both, the exception cannot be unpickled from a Ray worker
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def put_before(self, place: str) -> None:
        self.detail = f"{place}: {self.detail}"
        self.args = (self.reason, self.detail)


class DatasetError(OrchestrionError):
    """A dataset that cannot be built from its sources, or that lacks the requested contents."""


class CheckpointError(OrchestrionError):
    """A checkpoint that is incomplete, damaged or belongs to another model."""


class DamagedFile(OrchestrionError):
    """A file of the home with other bytes than were written, or with an unusable shape."""


class NoSeal(DamagedFile):
    """A file without a digest of itself, from before there were digests."""


class HomeError(OrchestrionError):
    """A home folder that is read-only, full or in use."""

    exit_code = 1


class Diverged(OrchestrionError):
    """A training whose gradients or validation losses are no longer finite."""

    exit_code = 1


class OutOfMemory(OrchestrionError):
    """Work that a GPU has too little memory for."""

    exit_code = 1


class BadHome(HomeError):
    """A path that cannot be a home, by its name or its contents: the caller's mistake."""

    exit_code = 2


class DamagedDatabase(HomeError):
    """A damaged database of the home."""


class SweepFailed(OrchestrionError):
    """A sweep without a result for any point."""

    exit_code = 1


class Interrupted(OrchestrionError):
    """A stop by the user or the scheduler; the work done is saved."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def words_of(error: BaseException) -> str:
    """Return a foreign error in one line: the last line of a traceback, or the line below a heading."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    if any(line.startswith(("Traceback (most recent call last)", 'File "')) for line in lines):
        return lines[-1]
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def cause_of(error: BaseException) -> BaseException:
    """Return the error that Ray and Ray Train wrapped, the project's own errors first."""
    while True:
        failures = list(getattr(error, "worker_failures", {}).values())
        inner = [getattr(error, name, None) for name in ("controller_failure", "_base_exc", "health_check_failure")]
        if type(error).__name__.startswith("RayTaskError"):
            inner.append(getattr(error, "cause", None))
        wrapped = [found for found in [*failures, *inner] if isinstance(found, BaseException) and found is not error]
        if not wrapped:
            return error
        causes = [getattr(found, "_base_exc", found) for found in wrapped]
        error = next((cause for cause in causes if isinstance(cause, OrchestrionError)), causes[0])


def plural(n: int, noun: str, many: str = "") -> str:
    """Return a count with its noun; `many` is the plural if it is not the noun with an s."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {many or noun + 's'}"
