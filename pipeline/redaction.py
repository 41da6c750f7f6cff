"""Mask passwords and replace control characters in texts that are shown."""

import os
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus

# C0 and C1 control characters except tab and newline, and characters that change the direction of text.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MASK = "***"
# Words of this project's commands and messages. They are not masked, even if one is somebody's password.
WORDS = frozenset(
    ["champion", "challenger", "password", "pipeline", "postgres", "postgresql", "reproduce", "rollback", "schedule"]
)

# All patterns take linear time: a repetition starts where its run of characters starts, and is possessive or bounded.
_SECRET = r"(?:passw(?:or)?d|secret|token|signature|credential|api_?key|access_?key|auth_?string|authorization)"
_VARIABLE = re.compile(rf"{_SECRET}(?!_?ID$)", re.IGNORECASE)  # names of variables whose value is a secret
_IS_PATH = re.compile(r"_(?:DIR|FILE|PATH)$", re.IGNORECASE)  # names of variables whose value is a path
# `password=x`, `password: x`, `"password": "x"`, `Authorization: Basic x`, but not the `token:` of `token:x@host`.
_SETTING = re.compile(
    rf"((?:(?<![\w.-])(?=[\w.-]*{_SECRET})[\w.-]++(?<!_dir)(?<!_file)(?<!_path)"
    r"['\"]?[ \t]*+(?:=(?!=)|(?<=['\"]):|:(?=[\s'\"]|basic\s|bearer\s))[ \t]*+)|[?&]key=)"
    r"(b?'(?:[^'\\]|\\.)*+'|b?\"(?:[^\"\\]|\\.)*+\"|b?['\"].*|(?:(?:basic|bearer|token)[ \t]++)?[^\s&'\"]+)",
    re.IGNORECASE,
)
_SCHEME = r"[a-z][\w+.-]*+://"
_HOST = r"(?:\[[^\]\s]*\]|[^/?#@:\s]*+)(?::\d++)?+(?:[/?#]|[:,;.)'\"]*+(?:\s|$))"  # without a user before it
# The rest of an address reaches to the next white space, or to the @ behind it if it may be in a password: after a
# colon that is not a port's. Addresses without a user are not matched: those of files, and of a web host.
_ADDRESS = re.compile(
    rf"(?:(https?|wss?)://(?!{_HOST})|(?<!http)(?<!https)(?<!ws)(?<!wss)://(?!/))"
    r"([^\s@/?#:]*+:(?!\d{1,5}/)[^\s@]*+\s(?:(?!://)[^@\n]){0,200}+@\S*|\S+)",
    re.IGNORECASE,
)


def without_password(text: str, *secrets: str) -> str:
    """Mask secrets in a text: in addresses, in settings, and the values of secret environment variables.

    Libraries disagree on where a password with / or @ ends. Everything that one of them reads as a password is masked.
    Not masked are values of the environment that are short (below 8 letters and digits, or 3 characters), paths of
    existing files, and WORDS. Values of letters only are masked as whole words, not within longer words.

    Args:
        secrets: more secrets, each a password or `user:password`.
    """
    for secret in sorted(_find_secrets(secrets), key=len, reverse=True):
        text = re.sub(rf"\b{secret}\b", MASK, text) if secret.isalpha() else text.replace(secret, MASK)
    return _SETTING.sub(rf"\1{MASK}", _ADDRESS.sub(_mask_user, text))


def _mask_user(found: re.Match[str]) -> str:
    is_web, (user, has_user, place) = bool(found[1]), found[2].rpartition("@")
    name, has_password, _ = user.partition(":")
    if has_password and not (is_web and "@" in name):
        user = f"{name}:{MASK}"
    elif has_user and is_web:
        user = MASK  # a token
    return f"{found[0].removesuffix(found[2])}{user}{has_user}{place}"


def _find_secrets(given: Sequence[str]) -> set[str]:
    """Return the given secrets and those of the environment, in every encoding, except words of messages."""
    found, logins = set(given), set(given)  # a login is `user:password`
    for name, value in os.environ.items():
        if re.match(_SCHEME, value, re.IGNORECASE):
            for address in re.split(rf"\s+(?={_SCHEME})", value):
                logins.update(_logins_of(address))
                settings = parse_qsl(address.partition("?")[2], keep_blank_values=True)
                found.update(secret for key, secret in settings if _VARIABLE.search(key))
        elif _VARIABLE.search(name) and not _IS_PATH.search(name) and not ("/" in value and os.path.exists(value)):
            found.add(value)
            logins |= {value, f"{os.environ.get(name.replace('PASSWORD', 'USERNAME'))}:{value}"}
    found |= {login.partition(":")[2] for login in logins}
    decoded = found | {decode(secret) for secret in found for decode in (unquote, unquote_plus)}
    spellings = decoded | {repr(secret)[1:-1] for secret in decoded}
    for plain in map(_to_bytes, decoded):
        spellings |= {quote(plain), quote_plus(plain), quote(plain, safe="")}
    for login in logins:  # as in `Authorization: Basic …`
        if ":" in login:
            spellings |= {b64encode(_to_bytes(plain)).decode() for plain in (login, unquote(login))}
    return {
        secret
        for secret in spellings
        if (len(secret) >= 8 or (len(secret) >= 3 and not secret.isalnum())) and secret.lower() not in WORDS
    }


def _logins_of(address: str) -> Iterator[str]:
    """Yield the parts of an address that libraries may read as `user:password`."""
    found = _ADDRESS.search(address)
    if found and "@" in found[2]:
        rest = address[found.start(2) :]
        yield from (rest.rpartition("@")[0], rest.partition("@")[0], re.split("[/?#]", rest)[0].rpartition("@")[0])


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """Replace characters that would control the terminal by `?`. File names may contain them."""
    return CONTROL.sub("?", text)
