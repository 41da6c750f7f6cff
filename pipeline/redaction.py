"""Texts that may be shown: passwords are masked, and control characters do not reach the terminal."""

import os
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus

# C0 and C1 control characters but for tab and newline, and what changes the direction of a text.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MASK = "***"
_SECRET = r"(?:passw(?:or)?d|secret|token|signature|credential|api_?key|access_?key|auth_?string)"
_VARIABLE = re.compile(rf"{_SECRET}(?!_?ID$)", re.IGNORECASE)  # whose value is a secret
_SETTING = re.compile(rf"([\w.-]*{_SECRET}[\w.-]*=|[?&]key=)('[^']*'|\"[^\"]*\"|[^\s&'\"]+)", re.IGNORECASE)
# The rest of an address reaches to the next white space, or to the @ behind it if there is none before.
_ADDRESS = re.compile(r"([a-z][\w+.-]*)://([^\s@]*\s[^@\n]*@\S*|\S+)", re.IGNORECASE)
_HOST = re.compile(r"(\[[^\]]*\]|[^/?#@:\s]*)(:\d+)?([/?#\s]|$)")  # and nobody's name before it


def without_password(text: str) -> str:
    """Mask what may be secret in a text: in its addresses, in its settings, and whatever the environment holds.

    Each library reads a password with / or @ in it differently: what one of them takes for a password is masked.
    """
    for secret in sorted(_find_secrets(), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _SETTING.sub(rf"\1{MASK}", _ADDRESS.sub(lambda found: _mask_user(found[1], found[2]), text))


def _mask_user(scheme: str, rest: str) -> str:
    user, has_user, place = rest.rpartition("@")
    is_web = scheme.lower() in ("http", "https", "ws", "wss")
    if has_user and not (is_web and _HOST.match(rest)):
        name, has_password, _ = user.partition(":")
        if has_password:
            user = f"{name}:{MASK}"
        elif is_web:
            user = MASK  # a token
    return f"{scheme}://{user}{has_user}{place}"


def _find_secrets() -> set[str]:
    """The secrets in the environment, in every spelling, but those that may be a word of a message."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _ADDRESS.match(value):
            found.update(_secrets_of(value))
        elif _VARIABLE.search(name):
            found |= {value, value.partition(":")[2]}  # `user:password`
    decoded = found | {decode(secret) for secret in found for decode in (unquote, unquote_plus)}
    spellings = decoded | {encode(secret) for secret in decoded for encode in (quote, quote_plus)}
    spellings |= {quote(secret, safe="") for secret in decoded} | {repr(secret)[1:-1] for secret in decoded}
    return {secret for secret in spellings if len(secret) >= 8 or (len(secret) >= 3 and not secret.isalnum())}


def _secrets_of(address: str) -> Iterator[str]:
    _, _, rest = address.partition("://")
    for user in (rest.rpartition("@")[0], rest.partition("@")[0], re.split("[/?#]", rest)[0].rpartition("@")[0]):
        yield user.partition(":")[2]
    for name, value in parse_qsl(rest.partition("?")[2], keep_blank_values=True):
        if _VARIABLE.search(name):
            yield value


def printable(text: str) -> str:
    """A text with `?` for every character that would control the terminal, as in a file name of somebody else."""
    return CONTROL.sub("?", text)
