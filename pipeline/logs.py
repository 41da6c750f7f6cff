"""The log of the processes that run for months: `pipeline up`, its servers and the runner.

A line has its time, the part that wrote it, its level and a message. A part of `pipeline up` prints only the level and
the message: `pipeline up` adds time and part to every line of its output, also to a traceback.
"""

import logging
import os
import sys
import time

from pipeline.errors import ParamsError
from pipeline.redaction import printable, without_password

LEVEL_VARIABLE = "PIPELINE_LOG_LEVEL"
FORWARDED_VARIABLE = "PIPELINE_LOG_FORWARDED"  # set by `pipeline up` for its parts
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
COLOURS = {"mlflow": 34, "prefect": 35, "runner": 32}  # in a terminal, as ANSI codes
BOLD = 1


def configure(part: str, *libraries: str) -> None:
    """Write the log of this process to standard output, from the level in PIPELINE_LOG_LEVEL (default: INFO).

    Args:
        part: the name of this process in its lines.
        libraries: loggers of other packages to write too. Warnings and errors only, unless the level is DEBUG.

    Raises:
        ParamsError: PIPELINE_LOG_LEVEL is not a level.
    """
    level = os.environ.get(LEVEL_VARIABLE, "").upper() or "INFO"
    if level not in LEVELS:
        raise ParamsError(
            f"{LEVEL_VARIABLE}={level} is not a level of the log",
            expected=", ".join(LEVELS),
            remedy=f"export {LEVEL_VARIABLE}=INFO",
        )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_LineFormatter(part, in_colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    for name in ("pipeline", *libraries):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel("WARNING" if name in libraries and level == "INFO" else level)


def forward(part: str, line: str) -> None:
    """Write a line that another part printed. That part has filtered its lines by level."""
    logging.getLogger(__name__).handle(logging.makeLogRecord({"msg": line, "levelno": logging.INFO, "part": part}))


class _LineFormatter(logging.Formatter):
    """Format a record as lines, without secrets and control characters."""

    def __init__(self, part: str, in_colour: bool) -> None:
        super().__init__()
        self._part, self._in_colour = part, in_colour
        self._is_forwarded = bool(os.environ.get(FORWARDED_VARIABLE))

    def format(self, record: logging.LogRecord) -> str:
        lines = printable(without_password(super().format(record))).splitlines()
        other = getattr(record, "part", None)
        if other is None:
            lines = [f"{record.levelname:8}{line}" for line in lines]
            if self._is_forwarded:
                return "\n".join(lines)
        part = other or self._part
        head = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record.created))} {part:7} | "
        if self._in_colour:
            head = f"\x1b[{COLOURS.get(part, BOLD)}m{head}\x1b[0m"
        return "\n".join(head + line for line in lines)
