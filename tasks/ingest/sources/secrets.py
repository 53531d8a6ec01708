"""What is secret in an address stays out of whatever is stored or said; the process that fetches finds it again.

The query of an http address, which may be a signature, is replaced by `query=` and a digest, under which the query
itself stands in this process's environment, where child processes find it too. Of parameters that look like secrets
nothing enters the digest, so that an address signed anew stays the same address. Names and passwords in front of a host
are refused, as is what looks like a secret in the address of a store: netrc and the environment are for those.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

from tasks.errors import ConfigError, NotFound

VARIABLE = "ORCHESTRION_QUERY_"  # and the digest in capitals
_WEB = re.compile(r"^https?://", re.IGNORECASE)
_PUBLIC_QUERY = re.compile(r"query=([0-9a-f]{8})")
_SECRET = re.compile(
    r"^(x-(amz|goog|oss|cos|obs|ms)-.*|sig|s[ektprv]|sk[a-z]+|spr|sdd|exp|expires?|policy|(aws|google)accesskeyid"
    r"|key-pair-id|hdn.*|st|pin|otp|code|auth|session.*|.*(signature|token|secret|passw|passphrase|pwd|credential|hmac).*"
    r"|.*auth(orization)?|.*(api|access|private|account|shared|sas|secret)[-_]?(key|id)|key)$",
    re.IGNORECASE,
)
_COLON_IS_NO_PASSWORD = ("github",)  # github://owner:repository@branch/path


def hidden(text: str) -> str:
    """Return a text without the names, passwords and queries of the addresses in it, for messages of other programs."""
    text = re.sub(r"(\w://)[^\s/?#'\"<>]*@", r"\1", text)
    return re.sub(r"(\w://[^\s?#'\"<>]*)\?[^\s#'\"<>)]*", r"\1?...", text)


def public_address(address: str) -> str:
    """Return an http address without what may be secret in it; other addresses and paths as they are."""
    if not _WEB.match(address):
        return address
    address = re.sub(r"^(\w+://)[^/?#]*@", r"\1", address)
    before, mark, rest = address.partition("?")
    query, hash_mark, fragment = rest.partition("#")
    if not mark or not query or _PUBLIC_QUERY.fullmatch(query):
        return address
    plain = [pair for pair in query.split("&") if not _SECRET.match(pair.partition("=")[0])]
    digest = hashlib.sha256("&".join(plain).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{before}?query={digest}{hash_mark}{fragment}"


def keep_query(address: str) -> str:
    """Return the public form of an address, and keep its query in the environment for whoever fetches it."""
    public = public_address(address)
    if public != address and (query := address.partition("?")[2].partition("#")[0]):
        os.environ[_variable(public)] = query
    return public


def keep_queries(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command with the addresses of its sources in their public form, queries kept."""
    result: list[str] = []
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if before == "--source" or argument.startswith("--source="):
            result.append(re.sub(r"https?://[^\s#]+", _kept, argument, flags=re.IGNORECASE))
        elif argument.startswith("dataset.sources="):
            result.append(re.sub(r"https?://[^\s#\"]+", _kept, argument, flags=re.IGNORECASE))
        else:
            result.append(argument)
    return result


def _kept(match: re.Match[str]) -> str:
    has_user = "@" in re.split("[/?]", match[0].partition("://")[2])[0]  # refused later, where that can be said
    return match[0] if has_user else keep_query(match[0])


def full_address(public: str) -> str:
    """Return an address with the query that was kept for it.

    Raises:
        NotFound: none was.
    """
    before, _, rest = public.partition("?")
    query, mark, fragment = rest.partition("#")
    if not _WEB.match(public) or not _PUBLIC_QUERY.fullmatch(query):
        return public
    if (kept := os.environ.get(_variable(public))) is None:
        raise NotFound(
            f"source {public}: its query is not stored, and this process was not told of it; give the whole address"
            f" again, or set {_variable(public)} to what stood behind the question mark"
        )
    return f"{before}?{kept}{mark}{fragment}"


def _variable(public: str) -> str:
    query = public.partition("?")[2].partition("#")[0]
    return VARIABLE + query.removeprefix("query=").upper()


def refuse_secrets(address: str, scheme: str) -> None:
    """See that an address names nobody's password.

    Raises:
        ConfigError: it does; the message holds no secret and says where secrets belong.
    """
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
    named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.match(name)]
    if names_user or named:
        what = f"a secret ({', '.join(named)[:80]})" if named else "a user or password"
        raise ConfigError(
            f"source {shown} was given with {what}, which would be stored; leave it out of the address and set it in"
            f" the environment ({variables})"
        )
