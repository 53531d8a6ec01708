"""File names inside sources: archives, dangerous names, and formats by first bytes."""

import re

LIST_SUFFIXES = (".txt", ".lst")
ARCHIVE_SUFFIXES = {  # suffix -> format; the longest that fits counts
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "tar.gz",
    ".tgz": "tar.gz",
    ".tar.zst": "tar.zst",
    ".tzst": "tar.zst",
}
_ARCHIVES = tuple((suffix.encode(), kind) for suffix, kind in ARCHIVE_SUFFIXES.items())
_APPLE_DOUBLE = b"\0\5\x16\7"
_DRIVE = re.compile(rb"^[A-Za-z]:")


def is_companion(name: bytes, head: bytes = b"") -> bool:
    """Return whether macOS puts a file like this beside another: `._song.mid`, below `__MACOSX/`, AppleDouble bytes."""
    return (
        name.rpartition(b"/")[2].startswith(b"._")
        or name.startswith(b"__MACOSX/")
        or b"/__MACOSX/" in name
        or head.startswith(_APPLE_DOUBLE)
    )


def archive_format(name: bytes) -> str:
    """Return the archive format of a name's suffix, or an empty string."""
    lowered = name[-8:].lower()
    return next((kind for suffix, kind in _ARCHIVES if lowered.endswith(suffix)), "")


def danger_of(name: bytes) -> str:
    """Return why the name of an archive member would be unsafe to unpack, or an empty string."""
    if b"\0" in name:
        return "a NUL byte"
    slashed = name.replace(b"\\", b"/")
    if slashed.startswith(b"/"):
        return "an absolute name"
    if _DRIVE.match(slashed):
        return "a drive letter"
    if b".." in slashed and b".." in slashed.split(b"/"):
        return "a way out of its folder (..)"
    return ""


def sniff_format(head: bytes) -> str:
    """Return the format by a file's first 512 bytes: an archive format, `midi`, or an empty string."""
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return "tar.zst"
    if head[257:262] == b"ustar":
        return "tar"
    return "midi" if head.startswith((b"MThd", b"RIFF")) else ""
