"""Descriptions that the pipeline writes in MLflow, and people edit there.

A description of ours ends with a comment that contains the digest of the text. MLflow's pages do not show the comment.
If somebody has edited the text, the digest differs, and the text is kept.
"""

import hashlib
import re

LONGEST = 5_000  # characters; MLflow's limit for the description of an experiment or a version
_SIGNATURE = "\n\n<!-- written by the pipeline ({}); an edited text is kept -->"
_SIGNED = re.compile(
    r"(.*)\n\n<!-- written by the pipeline \(([0-9a-f]{12})\); an edited text is kept -->\s*", re.DOTALL
)
SIGNATURE_LENGTH = len(_SIGNATURE.format("0" * 12))


def sign(text: str) -> str:
    """Return a text with the comment that marks it as written by the pipeline."""
    return text + _SIGNATURE.format(_digest(text))


def must_write(present: str | None, signed: str) -> bool:
    """Return True if a signed text is to replace the present description: a missing one, or another of ours."""
    if not present:
        return True
    found = _SIGNED.fullmatch(present)
    return present != signed and found is not None and _digest(found[1]) == found[2]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
