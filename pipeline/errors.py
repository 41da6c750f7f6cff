"""One exception root. Every message says what was expected, what was found, and what to run next."""

import shlex
from pathlib import Path

from pipeline.redaction import printable, without_password

FAILURE = 1  # exit code of a command that cannot do what it was asked
TEMPORARY_FAILURE = 75  # of one that may succeed later as it is: EX_TEMPFAIL of sysexits.h


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
