"""Downloads of files: resumed after a cut, checked, and renamed when complete."""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tasks.config.source_limits import SourceLimits
from tasks.errors import DamagedFile, DatasetError, NotFound
from tasks.ingest.sources.cache import cache_key
from tasks.ingest.sources.connections import Watch, make_session
from tasks.ingest.sources.secrets import full_address, hidden, public_address
from tasks.storage.file_names import printable
from tasks.storage.files import publish_file, write_atomically
from tasks.storage.integrity import examine, read_sealed, sealed_bytes

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

PIECE = 2**18
MAX_REDIRECTS = 10
MAX_DIGITS = 15  # of a number of bytes
_GONE = (401, 403, 404, 410, 451)
_LATER = (408, 425, 429)
KNOWN = {"etag?": str, "last_modified?": str, "n_bytes?": int, "sha256?": str}  # shape of `_Known`


@dataclass(slots=True)
class _Known:
    """The facts about a file on its server, kept beside the download."""

    etag: str = ""
    last_modified: str = ""
    n_bytes: int = -1  # of the whole; -1: the server does not say
    sha256: str = ""  # of the whole file here; empty while it is not whole

    @property
    def validator(self) -> str:
        """Return the value for If-Range, or an empty string if the server sent none."""
        return self.last_modified if self.etag.startswith("W/") or not self.etag else self.etag


class Cut(Exception):
    """A connection that ended early or a fault of the server; a retry may help."""


def download(address: str, cache: Path, limits: SourceLimits, sha256: str = "") -> Path:
    """Return a local copy of the file at an address.

    An existing copy is fetched again only if the file on the server has changed. A copy with the right `sha256` is
    used without a request, and any copy is used while the server cannot be reached.

    Raises:
        NotFound: the server does not have the file.
        DatasetError: the file cannot be fetched, is too large, or has another checksum than `sha256`.
    """
    public = public_address(address)
    name = unquote(Path(urlsplit(public).path).name).replace("/", "_").lstrip(".") or "download"
    name = "".join(character if character.isprintable() else "_" for character in printable(name)[-40:])
    path = cache / "downloads" / f"{cache_key(public)}-{name}"
    with Watch(limits) as watch:
        return _Download(full_address(address), public, path, limits, sha256.lower(), watch).run()


class _Download:
    def __init__(self, address: str, shown: str, path: Path, limits: SourceLimits, sha256: str, watch: Watch) -> None:
        self.address, self.path, self.limits, self.expected = address, path, limits, sha256
        self.shown, self.watch = shown, watch  # messages hold no secret
        self.partial = path.with_name(f"{path.name}.part")
        self.facts = path.with_name(f"{path.name}.json")
        self.session = make_session(limits, watch, shown)
        self.session.max_redirects = MAX_REDIRECTS
        self.known = self._read_facts()
        self.whole = path.exists() and bool(self.known.sha256)  # a copy that may be up to date

    def run(self) -> Path:
        with self.session:
            if self.whole and self.expected:
                if self.known.sha256 == self.expected:
                    return self.path
                self.whole = False
                self.known = _Known()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            resumed = self._fetch()
            if self.partial.exists() and not self._fits() and resumed:
                logger.warning("%s does not fit its checksum after a resumed download; fetching it whole", self.shown)
                self._forget()
                self._fetch()
            return self._publish()

    def _fetch(self) -> bool:
        """Complete the partial file; return whether an earlier run or attempt began it."""
        failures = 0
        while True:
            begin = self._n_partial()
            try:
                return self._attempt()
            except Cut as cut:
                kept = f"{self._n_partial()} bytes are kept, and the next run goes on from there"
                if self.watch.is_over:
                    limit = f"download_seconds={self.limits.download_seconds:g}"
                    raise self._error(f"not here after {limit}; {kept}") from None
                failures = 0 if self._n_partial() > begin and not self.watch.is_slow else failures + 1
                if failures >= self.limits.download_attempts:
                    if self.whole:
                        logger.warning("%s: %s; the copy of an earlier scan is used", self.shown, cut)
                        return False
                    raise self._error(f"{cut}, {failures} times in a row; {kept}") from None
                wait = min(60.0, self.limits.retry_wait_seconds * 2 ** max(0, failures - 1))
                logger.warning("%s: %s; trying again in %.1f s", self.shown, cut, wait)
                self.watch.wait(wait)

    def _attempt(self) -> bool:
        import requests
        import urllib3

        begin = 0 if self.whole else self._n_partial()
        if begin and not self.known.validator:
            begin = 0  # the rest may belong to another file
        headers = {"Accept-Encoding": "identity"}
        if begin:
            headers |= {"Range": f"bytes={begin}-", "If-Range": self.known.validator}
        elif self.whole:
            headers |= {"If-None-Match": self.known.etag} if self.known.etag else {}
            headers |= {"If-Modified-Since": self.known.last_modified} if self.known.last_modified else {}
        timeout = min(self.limits.download_timeout_seconds, max(0.001, self.watch.deadline - time.monotonic()))
        self.watch.begin_attempt()
        try:
            with self.session.get(self.address, headers=headers, stream=True, timeout=timeout) as answer:
                return self._receive(answer, begin)
        except (DatasetError, NotFound):
            raise
        except requests.exceptions.TooManyRedirects:
            problem = f"more than {MAX_REDIRECTS} redirects"
        except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
            problem = f"{_first_line(error)}; redirects may lead to http and https only"
        except requests.exceptions.SSLError as error:
            problem = _first_line(error)
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Cut(self._slowness() or _first_line(error)) from None
        except ValueError as error:  # of the libraries, such as a redirect to http://[
            problem = f"the server's answer is none: {_first_line(error)}"
        finally:
            self.watch.end_attempt()
        raise self._error(problem)

    def _error(self, problem: str) -> DatasetError:
        return DatasetError(f"source {self.shown}: {problem}")

    def _slowness(self) -> str:
        if not self.watch.is_slow:
            return ""
        limit = f"download_min_bytes_per_second={self.limits.download_min_bytes_per_second:g}"
        return f"slower than {limit} over {self.limits.download_timeout_seconds:g} s"

    def _receive(self, answer: "requests.Response", begin: int) -> bool:
        if answer.status_code == 304 and self.whole:
            return False
        if answer.status_code == 416 and begin:  # the partial file is as long as the whole, or longer
            self._forget()
            raise Cut("the server has no such range")
        if answer.status_code in _GONE:
            raise NotFound(f"source {self.shown}: the server says {_status(answer)}")
        if answer.status_code >= 500 or answer.status_code in _LATER:
            raise Cut(f"the server says {_status(answer)}")
        if answer.status_code not in (200, 206):
            raise self._error(f"the server says {_status(answer)}")
        resumes = answer.status_code == 206
        length = self._whole_number(answer, "Content-Length", answer.headers.get("Content-Length", ""))
        total = length + (begin if resumes else 0) if length >= 0 else -1
        if resumes:
            start, _, of = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if not begin or start.partition("-")[0] != str(begin):
                self._forget()
                raise Cut(f"the server sent another range than requested ({start or 'none'})")
            stated = self._whole_number(answer, "Content-Range", of if of != "*" else "")
            total = stated if stated >= 0 else total
        if total > self.limits.max_download_bytes:
            raise self._too_large(total)
        self.known = _Known(answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""), total)
        self.whole = False  # the server did not say that the copy is up to date
        self._write_facts()
        self._write_body(answer, "ab" if resumes else "wb", begin if resumes else 0)
        return resumes

    def _whole_number(self, answer: "requests.Response", name: str, value: str) -> int:
        """Return a number of bytes from a header, -1 for none."""
        if not value:
            return -1
        if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
            header = answer.headers.get(name, "")
            raise self._error(f"the server's {name} is {header[:60]!r}, which is no number of bytes")
        return int(value)

    def _write_body(self, answer: "requests.Response", mode: str, n_bytes: int) -> None:
        with self.partial.open(mode) as handle:
            while piece := answer.raw.read1(PIECE, decode_content=False):  # also the last bytes before a cut
                n_bytes += len(piece)
                self.watch.n_bytes += len(piece)
                if n_bytes > self.limits.max_download_bytes:
                    handle.close()
                    self._forget()
                    raise self._too_large(n_bytes)
                handle.write(piece)
        if self.known.n_bytes >= 0 and n_bytes < self.known.n_bytes:
            raise Cut(self._slowness() or f"{n_bytes} of {self.known.n_bytes} bytes came")
        if self.watch.is_slow or self.watch.is_over:  # the watch's shutdown looks like the end of a body without length
            raise Cut(self._slowness() or "cut off")

    def _publish(self) -> Path:
        if not self.partial.exists():  # the copy is up to date
            if self.expected and self.known.sha256 != self.expected:
                raise self._wrong_checksum(self.known.sha256)
            return self.path
        found = examine(self.partial).sha256
        if self.expected and found != self.expected:
            self._forget()
            raise self._wrong_checksum(found)
        publish_file(self.partial, self.path)
        self.known.sha256, self.known.n_bytes = found, self.path.stat().st_size
        self._write_facts()
        return self.path

    def _fits(self) -> bool:
        return not self.expected or examine(self.partial).sha256 == self.expected

    def _wrong_checksum(self, found: str) -> DatasetError:
        return self._error(
            f"sha256 is {found}, not {self.expected}; the download is removed. Either the file on the server was"
            " changed, or the checksum given is wrong"
        )

    def _too_large(self, n_bytes: int) -> DatasetError:
        return self._error(f"{n_bytes} bytes or more, above max_download_bytes={self.limits.max_download_bytes}")

    def _n_partial(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _forget(self) -> None:
        self.partial.unlink(missing_ok=True)

    def _read_facts(self) -> _Known:
        try:
            return _Known(**read_sealed(self.facts, {"known": KNOWN})["known"])
        except (FileNotFoundError, DamagedFile, TypeError):
            self._forget()  # the part may belong to another file
            return _Known()

    def _write_facts(self) -> None:
        facts: dict[str, Any] = {"address": self.shown, "known": asdict(self.known)}
        write_atomically(self.facts, sealed_bytes(facts))


def _status(answer: "requests.Response") -> str:
    reason = "".join(character for character in str(answer.reason or "")[:60] if character.isprintable())
    return f"{answer.status_code} {reason}".strip()


def _first_line(error: BaseException) -> str:
    """Return the cause of a network error in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    lines = hidden(printable(str(error))).splitlines()
    text = "".join(character for character in lines[0][:300] if character.isprintable()) if lines else ""
    return text or type(error).__name__
