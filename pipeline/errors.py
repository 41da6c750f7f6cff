"""One exception root. Every message says what was expected, what was found, and what to run next, and no password."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus

# C0 and C1 control characters but for tab and newline, and what changes the direction of a text.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FAILURE = 1  # exit code of a command that cannot do what it was asked
TEMPORARY_FAILURE = 75  # of one that may succeed later as it is: EX_TEMPFAIL of sysexits.h

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


class PipelineError(Exception):
    """Something the reader can mend. The command line prints it without a traceback and exits non-zero.

    Args:
        problem: one sentence that names the thing at fault (a file, a parameter, a batch).
        expected: what would have been right.
        found: what was there instead.
        remedy: the command to run, or the edit to make, next.
        temporary: a network or a server did not answer, so that the same command may succeed later.
    """

    def __init__(
        self, problem: str, *, expected: str = "", found: str = "", remedy: str = "", temporary: bool = False
    ) -> None:
        problem, expected, found, remedy = map(without_password, (problem, expected, found, remedy))
        self.problem, self.expected, self.found, self.remedy = problem, expected, found, remedy
        self.exit_code = TEMPORARY_FAILURE if temporary else FAILURE
        details = {"expected": expected, "found": found, "remedy": remedy}
        lines = [problem, *(f"  {name + ':':9} {text}" for name, text in details.items() if text)]
        super().__init__(printable("\n".join(lines)))


def mend_committed(path: Path) -> str:
    """The remedy for a file in git that is missing, cannot be parsed, or is in a merge conflict.

    `git checkout PATH` is refused in a conflict, and would throw away the edits of a file that people write.
    """
    here, is_generated = Path.cwd(), path.name == "dvc.lock"
    name = shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return f"git checkout {name}"
    if any(line.startswith(b"<<<<<<< ") for line in lines):
        if is_generated:  # the next run completes it, whichever side was taken
            return f"git checkout --ours {name} (or --theirs), then: pipeline run && git add {name}"
        return f"resolve the merge conflict in {name}, then: git add {name}"
    return f"git checkout {name}" if is_generated else f"correct it; `git diff {name}` shows what was edited"


class ParamsError(PipelineError):
    """`params.yaml` holds something that cannot be run."""


class DataError(PipelineError):
    """Images or labels are missing, malformed, or not the ones they claim to be."""


class ValidationFailed(DataError):
    """A critical expectation about the data does not hold."""


class ModelError(PipelineError):
    """A network, loss, label encoding or model file does not fit."""


class TrackingError(PipelineError):
    """The tracking store or the registry cannot do what was asked."""


class WorkspaceError(PipelineError):
    """The checkout is not in a state in which the pipeline can run."""


class FlowError(PipelineError):
    """A run of the flow could not start or did not finish."""
