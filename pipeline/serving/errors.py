"""Errors of the server, and their form as a response."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from pipeline.errors import DataError, PipelineError

RETRY_SECONDS = 1  # in Retry-After


class ServeError(PipelineError):
    """The server cannot start."""


class RequestError(PipelineError):
    """A request that is not answered with a prediction.

    Args:
        status: the HTTP status of the response.
        others: see PipelineError.
    """

    def __init__(self, problem: str, *, status: int = HTTPStatus.BAD_REQUEST, **others: str) -> None:
        super().__init__(problem, expected=others.get("expected", ""), found=others.get("found", ""),
                         remedy=others.get("remedy", ""))  # fmt: skip
        self.status = int(status)


class NotAvailable(RequestError):
    """The server cannot answer now, and can later: 503 with Retry-After."""

    def __init__(self, problem: str, *, expected: str = "", found: str = "", remedy: str = "") -> None:
        super().__init__(problem, status=503, expected=expected, found=found, remedy=remedy)


def create_error_response(error: PipelineError, headers: Mapping[str, str] | None = None) -> Response:
    """Create a response with the message as JSON: `error`, `expected`, `found`, `remedy`, without the empty ones."""
    status = error.status if isinstance(error, RequestError) else 400 if isinstance(error, DataError) else 503
    parts = {"error": error.problem, "expected": error.expected, "found": error.found, "remedy": error.remedy}
    content = json.dumps({name: text for name, text in parts.items() if text})
    more = {"retry-after": str(RETRY_SECONDS)} if status == 503 else {}
    if status in (408, 413):  # the rest of the body is not read
        more["connection"] = "close"
    return Response(content, status, {**more, **(headers or {})}, "application/json")
