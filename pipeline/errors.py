"""The exceptions. Every message says what was expected, what was found, and what to run next."""

import shlex
from pathlib import Path

from pipeline.redaction import printable, without_password

FAILURE = 1  # exit code of a failed command
TEMPORARY_FAILURE = 75  # exit code if a retry may succeed: EX_TEMPFAIL of sysexits.h


class PipelineError(Exception):
    """An error that the user can fix. The command line prints it without a traceback and exits non-zero.

    Args:
        problem: a sentence that names the file, parameter or batch with the error.
        expected: the correct value or state.
        found: the actual value or state.
        remedy: the command to run or the edit to make.
        temporary: a network or a server did not respond, so the same command may succeed later.
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


def remedy_for_committed(path: Path) -> str:
    """Return the remedy for a file in git that is missing, cannot be parsed, or has a merge conflict.

    `git checkout PATH` fails in a conflict, and would discard the edits of a file that people write.
    """
    here, is_generated = Path.cwd(), path.name == "dvc.lock"
    name = shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return f"git checkout {name}"
    if any(line.startswith(b"<<<<<<< ") for line in lines):
        if is_generated:  # the next run completes either side
            return f"git checkout --ours {name} (or --theirs), then: pipeline run && git add {name}"
        return f"resolve the merge conflict in {name}, then: git add {name}"
    return f"git checkout {name}" if is_generated else f"correct it; `git diff {name}` shows what was edited"


class ParamsError(PipelineError):
    """`params.yaml` has a value that cannot be used."""


class DataError(PipelineError):
    """Images or labels are missing or malformed, or their digests are wrong."""


class ValidationFailed(DataError):
    """A critical expectation about the data failed."""


class ModelError(PipelineError):
    """A network, loss, label encoding or model file cannot be used."""


class TrackingError(PipelineError):
    """The tracking store or the registry cannot be used, or refuses an operation."""


class WorkspaceError(PipelineError):
    """The checkout is not in a state in which the pipeline can run."""


class FlowError(PipelineError):
    """A run of the flow could not start or did not finish."""
