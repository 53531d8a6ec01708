"""Addresses of sources without their secrets, for everything that is stored or printed.

The query of an http address, parameters of its path (`;name=value`) and the text after `#` may be secret. The public
form replaces them by `?query=` and a digest. The environment of this process holds the whole address under the digest,
also for child processes. The digest is an HMAC with a key of the home, so a short secret cannot be found by trial.
Addresses with different secrets are different sources, but signatures do not count. Users and passwords in an address
and secrets in the address of a store are refused; netrc and the environment are their places.
"""

import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from tasks.errors import ConfigError, HomeError, NotFound
from tasks.storage.files import storage_problem, write_private_once

VARIABLE = "ORCHESTRION_QUERY_"  # and the digest in capitals
SETTINGS = frozenset({"sha256", "licence", "license"})  # of a source, after its #
STORE_OPTIONS = frozenset(
    {"region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion", "anonymous",
     "retry_limit_seconds", "replication", "buffer_size", "default_block_size", "user", "tls_ca_file_path"}
)  # fmt: skip
_WEB = re.compile(r"^https?://", re.IGNORECASE)
_PARTS = re.compile(r"(https?://)([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.IGNORECASE | re.DOTALL)
_PARAMETERS = re.compile(r"(?:;|%3b)[^/]*", re.IGNORECASE)  # of a server, or of one folder or file of a path
_PUBLIC_QUERY = re.compile(r"query=([0-9a-f]{8}|[0-9a-f]{16})")  # 8 digits in homes from before 2026-11-30
_SECRET = re.compile(
    r"^(x-(amz|goog|oss|cos|obs|ms)-.*|sig|s[ektprv]|sk[a-z]+|spr|sdd|exp|expires?|policy|(aws|google)accesskeyid"
    r"|key-pair-id|hdn.*|st|pin|otp|code|auth|session.*|.*(signature|token|secret|passw|passphrase|pwd|credential|hmac).*"
    r"|.*auth(orization)?|.*(api|access|private|account|shared|sas|secret)[-_]?(key|id)|key)$",
    re.IGNORECASE,
)
_SIGNATURE = re.compile(r"^(sig|hmac|hdn.*|.*signature)$", re.IGNORECASE)
_SIGNING = re.compile(  # parameters that change with a signature, in the schemes of the large stores
    r"^(x-(amz|goog|oss|cos|obs|ms)-.*|sig|hmac|hdn.*|.*signature|s[ektprv]|sk[a-z]+|spr|sip|sdd|exp|expires?|policy"
    r"|(aws|google|oss)accesskeyid|googleaccessid|key-pair-id)$",
    re.IGNORECASE,
)
_COLON_IS_NO_PASSWORD = ("github",)  # github://owner:repository@branch/path

_key = secrets.token_bytes(32)  # of this process, until `use_key` reads that of a home


def use_key(path: Path) -> None:
    """Read the key of digests from a private file, which the first call makes."""
    global _key  # noqa: PLW0603
    try:
        write_private_once(path, secrets.token_hex(32))
        text = path.read_text("ascii", "replace").strip()
        if not re.fullmatch("[0-9a-f]{64}", text):  # damaged; downloads under its digests are fetched again
            path.unlink()
            write_private_once(path, text := secrets.token_hex(32))
    except OSError as error:
        raise HomeError(f"cannot keep the key in {path}: {storage_problem(error) or error.strerror}") from None
    _key = bytes.fromhex(text)


def hidden(text: str) -> str:
    """Return a library's message without the users, passwords and parameters of the addresses in it."""
    text = re.sub(r"(\w://)[^\s/?#'\"<>]*@", r"\1", text)
    text = re.sub(r"(\w://[^\s?#;'\"<>]*)([?#;])[^\s'\"<>)]*", r"\1\2...", text)
    return re.sub(r"(\burl: /[^\s?#;]*)([?#;])\S*", r"\1\2...", text)  # urllib3 names paths without their hosts


def hidden_path(written: str) -> str:
    """Return a missing path for messages, without secrets: it may be a mistyped address."""
    written = re.sub(r"^([A-Za-z][\w+.-]*:)?[^@]*:[^@]*@", r"\1", written)
    return re.sub(r"([?#;])[\w.%-]+=.*", r"\1...", hidden(written), flags=re.DOTALL)


def split_settings(text: str) -> tuple[str, dict[str, str]]:
    """Split a source into its name and its settings; any other `#` is part of the name."""
    before, mark, after = text.strip().rpartition("#")
    if not mark or not all(name in SETTINGS and equals for name, equals, _ in _pairs(after)):
        return text.strip(), {}
    return before, dict(parse_qsl(after.replace("+", "%2B"), keep_blank_values=True))


def names_settings(fragment: str) -> bool:
    """Return whether a fragment holds a setting of a source."""
    return any(name in SETTINGS for name, _, _ in _pairs(fragment))


def _pairs(text: str) -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in text.split("&")]


def public_address(address: str) -> str:
    """Return an http address without its possible secrets; other addresses and paths stay."""
    parts = _PARTS.fullmatch(address)
    if parts is None:
        return address
    scheme, server, path, query, _ = parts.groups()
    server = server.rpartition("@")[2]
    if not server:  # after a slash too many, a password may stand in the path
        path = path.rpartition("@")[2]
    bare, whole = scheme + _PARAMETERS.sub("", server + path), scheme + server + path
    if bare == whole and (not query or _PUBLIC_QUERY.fullmatch(query)):
        return bare if query is None else f"{bare}?{query}"
    pairs = (query or "").split("&")
    if any(_SIGNATURE.match(name) for name, _, _ in _pairs(query or "")):
        pairs = [pair for pair in pairs if not _SIGNING.match(pair.partition("=")[0])]
    counted = f"{server}{path}?{'&'.join(pairs)}"
    digest = hmac.new(_key, counted.encode("utf-8", "surrogateescape"), "sha256").hexdigest()[:16]
    return f"{bare}?query={digest}"


def keep_query(address: str) -> str:
    """Return the public form of an address and keep the whole address in the environment."""
    public, whole = public_address(address), address.partition("#")[0]
    if _WEB.match(address) and public != whole:
        os.environ[_variable(public)] = whole
    return public


def keep_queries(arguments: Sequence[str], keep: Callable[[str], str] = keep_query) -> list[str]:
    """Return a command's arguments with its sources in their public form; `keep=public_address` keeps no query."""
    result: list[str] = []
    for before, argument in zip(("", *arguments), arguments, strict=False):
        name, equals, value = argument.partition("=")
        if before == "--source":
            result.append(_kept(argument, keep))
        elif name == "--source" and equals:
            result.append(f"--source={_kept(value, keep)}")
        elif name in ("dataset", "dataset.sources") and equals:
            result.append(f"{name}={_kept_in(value, keep)}")
        else:
            result.append(argument)
    return result


def keep_sources(sources: Sequence[str], key: Path) -> tuple[str, ...]:
    """Return sources in their public form and keep their queries; `key` is the file of the home's key."""
    if any(_kept(source, public_address) != source for source in sources):
        use_key(key)
    return tuple(_kept(source, keep_query) for source in sources)


def _kept_in(value: str, keep: Callable[[str], str]) -> str:
    """Return a setting in JSON with its addresses in their public form."""
    try:
        given = json.loads(value)
    except (ValueError, RecursionError):
        return re.sub(r"https?://[^\s\"',\]]+", lambda found: _kept(found[0], keep), value, flags=re.IGNORECASE)
    kept = _kept_all(given, keep)
    return value if kept == given else json.dumps(kept)


def _kept_all(value: object, keep: Callable[[str], str]) -> object:
    if isinstance(value, dict):
        return {key: _kept_all(inner, keep) for key, inner in value.items()}
    if isinstance(value, list):
        return [_kept_all(inner, keep) for inner in value]
    return _kept(value, keep) if isinstance(value, str) else value


def _kept(source: str, keep: Callable[[str], str]) -> str:
    address, settings = split_settings(source)
    parts = _PARTS.fullmatch(address)
    if parts is None or "@" in parts[2] or names_settings(parts[5] or ""):  # the last two are refused later
        return source
    return keep(address) + (source.strip().removeprefix(address) if settings else "")


def full_address(public: str) -> str:
    """Return the whole address of a public one, or raise NotFound if none was kept."""
    before, _, query = public.partition("?")
    if not _WEB.match(public) or not _PUBLIC_QUERY.fullmatch(query):
        return public
    if (kept := os.environ.get(_variable(public))) is None:
        raise NotFound(
            f"source {public}: its query is not stored, and this process was not told of it; give the whole address"
            f" again, or set {_variable(public)} to the whole address"
        )
    return kept if public_address(kept).partition("?")[0] == before else f"{before}?{kept}"


def _variable(public: str) -> str:
    return VARIABLE + public.partition("?query=")[2].upper()


def refuse_secrets(address: str, scheme: str) -> None:
    """Raise ConfigError if an address holds a user, a password or another secret."""
    parts = urlsplit(address)
    user, at, _ = parts.netloc.rpartition("@")
    shown = hidden(public_address(address))
    if scheme in ("http", "https"):
        if at:
            raise ConfigError(
                f"source {shown} was given with a user or password, which would be stored; put them into ~/.netrc, or"
                f" the file that NETRC names, as `machine {parts.hostname} login USER password PASSWORD`, and leave"
                " them out of the address"
            )
        return
    variables = {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
        "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    }.get(scheme, f"FSSPEC_{scheme.upper()}_USERNAME and FSSPEC_{scheme.upper()}_PASSWORD, say")
    names_user = at and (":" in user or scheme in ("s3", "gs", "gcs")) and scheme not in _COLON_IS_NO_PASSWORD
    places = (parts.query, parts.fragment, *parts.path.split(";")[1:])
    pairs = [pair for place in places for pair in parse_qsl(place, keep_blank_values=True)]
    named = [name for name, _ in pairs if _SECRET.match(name)]
    if names_user or named:
        what = f"a secret ({', '.join(named)[:80]})" if named else "a user or password"
        raise ConfigError(
            f"source {shown} was given with {what}, which would be stored; leave it out of the address and set it in"
            f" the environment ({variables})"
        )


def refuse_unknown_options(address: str) -> None:
    """Raise ConfigError if the query of a store's address holds anything but options of stores."""
    query = urlsplit(address).query
    if query and any(not equals or name not in STORE_OPTIONS for name, equals, _ in _pairs(query)):
        raise ConfigError(
            f"source {hidden(address)}: what stands behind its ? is no option of a store; known:"
            f" {', '.join(sorted(STORE_OPTIONS))}"
        )
