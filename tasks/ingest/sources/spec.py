"""Parsing of sources, as a user writes them, to a kind and a location."""

import difflib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, unquote_to_bytes, urlencode, urlsplit

from tasks.errors import ConfigError, DatasetError, NotFound
from tasks.ingest.sources.catalog import catalog_names, find_entry
from tasks.ingest.sources.names import ARCHIVE_SUFFIXES, LIST_SUFFIXES, archive_format
from tasks.ingest.sources.secrets import (
    hidden,
    hidden_path,
    keep_query,
    names_settings,
    public_address,
    refuse_secrets,
    refuse_unknown_options,
    split_settings,
)
from tasks.storage.file_names import MIDI_SUFFIXES, is_midi, printable
from tasks.storage.home import is_home
from tasks.storage.user_paths import as_text

SourceKind = Literal["folder", "file", "list", "archive", "uri", "http", "catalog"]
ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
MAX_SHOWN = 120  # characters of a name that is too long for the system
_NO_ADDRESS = re.compile(r"^(https?):[/\\]*", re.IGNORECASE)  # a slash is missing or turned


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source, parsed."""

    text: str  # as written
    kind: SourceKind
    location: str  # a local path, an address, or a name in the catalog
    sha256: str = ""
    licence: str = ""

    @property
    def label(self) -> str:
        """The name in messages and tables: as written, without settings and possible secrets."""
        return _label(self.text)


def _label(text: str) -> str:
    return re.sub(r"^(\w[\w+.-]*://)[^/?#]*@", r"\1", public_address(split_settings(text)[0]))


def shown_source(text: str) -> str:
    """Return a source's label for messages, printable and shortened."""
    label = _label(text)
    is_web = label.lower().startswith(("http://", "https://"))
    return _shortened(printable(label if is_web else hidden_path(label)))


def parse_source(text: str) -> SourceSpec:
    """Parse a source: a path, an address or `catalog:NAME`, with settings after `#`.

    Raises:
        ConfigError: an unknown scheme or setting.
        NotFound: no such path or catalog entry.
        DatasetError: a path that is neither a folder nor a file of a known kind.
    """
    written, settings = split_settings(text)
    if not written:
        raise ConfigError(f"source {text!r} is empty; give a folder, a file, an address or a name of the catalog")
    kind, location = _kind_of(written)
    sha256 = settings.get("sha256", "").lower()
    if sha256:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ConfigError(f"source {shown_source(text)}: sha256={sha256[:80]} is not 64 hexadecimal digits")
        one_object = kind == "uri" and (archive_format(location.encode()) or is_midi(os.fsencode(location)))
        if kind not in ("file", "archive", "http", "catalog") and not one_object:
            raise ConfigError(f"source {shown_source(text)}: sha256 is for one file, and this is a {kind}")
    return SourceSpec(text, kind, location, sha256, settings.get("licence", settings.get("license", "")).strip())


def _kind_of(written: str) -> tuple[SourceKind, str]:
    if written.startswith("catalog:"):
        return "catalog", find_entry(written.removeprefix("catalog:").removeprefix("//")).name
    scheme = _SCHEME.match(written)
    if scheme is None:
        return _local_kind(written)
    name = scheme[1].lower()
    shown = shown_source(written)
    try:
        parts = urlsplit(written)
    except ValueError as error:
        raise ConfigError(f"source {_without_user(written)}: {hidden(str(error))}") from None
    try:
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ConfigError(f"source {_without_user(written)}: its port is no number from 1 to 65535") from None
    refuse_secrets(written, name)
    if name in ("http", "https"):
        if not host:
            raise ConfigError(f"source {hidden(_without_user(written))} names no server")
        if names_settings(parts.fragment):
            raise ConfigError(
                f"source {shown}: behind its # stands something besides the settings of a source, sha256 and licence"
            )
        if port == 0:
            raise ConfigError(f"source {shown}: its port is no number from 1 to 65535")
        return "http", written
    if name == "file":
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"source {shown} names the server {host}; file:// is for this machine")
        return _local_kind(os.fsdecode(unquote_to_bytes(parts.path)))
    if name not in ARROW_SCHEMES:
        import fsspec

        known = {known for known in fsspec.available_protocols() if re.fullmatch("[a-z0-9]+", known)}
        if name not in known - {"data", "cached", "blockcache", "filecache", "simplecache", "reference", "generic"}:
            schemes = [*ARROW_SCHEMES, "http", "https", "file", *sorted(known)]
            near = difflib.get_close_matches(name, schemes, n=3, cutoff=0.5)
            hint = f"; did you mean {', '.join(near)}?" if near else "; known: file, http, https, s3, gs, ..."
            raise ConfigError(f"source {shown}: unknown scheme {name}{hint}")
    refuse_unknown_options(written)
    return "uri", written


def _without_user(malformed: str) -> str:
    """Return a malformed address for messages, without the text before its last @, which may be a password."""
    return shown_source(re.sub("^([^:]*://).*@", r"\1", malformed))


def _local_kind(written: str) -> tuple[SourceKind, str]:
    path = Path(os.path.expanduser(written))  # noqa: PTH111  (Path's own raises on an unknown user)
    try:
        location = os.path.abspath(path)  # noqa: PTH100  (resolve() would follow links)
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except (OSError, ValueError) as error:  # a name that is too long, a link that leads to itself, a NUL byte
        problem = getattr(error, "strerror", None) or str(error)
        raise NotFound(f"source {_shortened(printable(hidden_path(written)))}: {problem}") from None
    if stat.S_ISDIR(mode):
        if is_home(location):
            raise DatasetError(
                f"source {printable(written)} is a home of Orchestrion, which holds what it made itself; name a folder"
                f" inside it, such as {printable(location)}/sample"
            )
        return "folder", location
    if not mode:
        if written.strip().lower() in catalog_names():
            return "catalog", written
        if begin := _NO_ADDRESS.match(written):
            raise ConfigError(
                f"source {printable(begin[0])}... is no address of a web server; that begins with {begin[1]}://HOST"
            )
        near = [] if os.sep in written else difflib.get_close_matches(written.lower(), catalog_names(), n=3)
        hint = f"; did you mean {' or '.join(f'catalog:{name}' for name in near)}?" if near else ""
        raise NotFound(f"source {printable(hidden_path(written))} does not exist{hint}")
    if not stat.S_ISREG(mode):
        raise DatasetError(f"source {printable(written)} is no regular file but a device, pipe or socket")
    name = os.fsencode(path.name)
    if is_midi(name):
        return "file", location
    if archive_format(name):
        return "archive", location
    if name.lower().endswith(tuple(suffix.encode() for suffix in LIST_SUFFIXES)):
        return "list", location
    raise DatasetError(
        f"source {printable(written)} is neither a folder, nor a {' '.join(MIDI_SUFFIXES)} file, nor an archive"
        f" ({' '.join(ARCHIVE_SUFFIXES)}), nor a list of files ({' '.join(LIST_SUFFIXES)})"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... of {len(text)} characters"


def check_source(text: str) -> None:
    """Check a source without opening it and without the network; errors as in `parse_source`."""
    spec = parse_source(text)
    if spec.kind == "catalog":
        find_entry(spec.location).check_downloadable()


def source_name(text: str) -> str:
    """Return a short name for a source: lower-case, of `[a-z0-9_.-]`, at most 64 characters."""
    written = public_address(split_settings(text)[0])
    try:
        parts = urlsplit(written)
    except ValueError:
        parts = urlsplit("")
    if written.startswith("catalog:"):
        stem = written.removeprefix("catalog:").removeprefix("//")
    elif (scheme := _SCHEME.match(written)) and scheme[1].lower() != "file":
        stem = PurePosixPath(unquote(parts.path)).name or parts.netloc.rpartition("@")[2]
    else:
        local = os.fsdecode(unquote_to_bytes(parts.path)) if scheme else written
        local = Path(os.path.expanduser(local))  # noqa: PTH111  (Path's own raises on an unknown user)
        try:
            stem = local.resolve().name
        except (OSError, RuntimeError, ValueError):  # too long, a link that leads to itself
            stem = local.name
    stem = stem.lower()
    suffix = max((end for end in (*ARCHIVE_SUFFIXES, *LIST_SUFFIXES) if stem.endswith(end)), key=len, default="")
    stem = stem.removesuffix(suffix)
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in stem).strip("-._")
    return cleaned[:64].rstrip("-._") or "dataset"


def absolute_source(text: str) -> str:
    """Return the stored form of a source: an absolute path, or an http address whose query stays in the environment."""
    spec, settings = parse_source(text), split_settings(text)[1]
    if spec.kind in ("catalog", "uri"):
        return text
    location = keep_query(spec.location) if spec.kind == "http" else as_text(Path(spec.location))
    return location + ("#" + urlencode(settings) if settings else "")
