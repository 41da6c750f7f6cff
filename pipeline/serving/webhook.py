"""The receiver of MLflow's registry webhooks: a promotion is noticed at once, without waiting for the next question.

The webhook only makes the resolver ask the registry now. What it says is not used, so a repeated one does no harm.
"""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping

from fastapi import APIRouter, Request

from pipeline.serving.errors import RequestError

MOST_BYTES = 2**18  # of a request, which is read before its signature is checked
MOST_SECONDS = 300  # between signature and arrival

router = APIRouter()


@router.post("/v1/refresh")
async def refresh(request: Request) -> dict[str, str]:
    """Ask the registry now. The request must be signed with the API key, as MLflow signs a webhook with its secret."""
    state = request.app.state
    body = await state.bodies.read(request, MOST_BYTES)
    if not is_signed(request.headers, body, state.settings.key or ""):
        raise RequestError(
            "the webhook is not signed with the API key",
            status=401,
            expected=f"X-MLflow-Signature, of the last {MOST_SECONDS} seconds",
            remedy="create the webhook with the API key as its secret (docs/serving.md)",
        )
    state.settings.refresh_file.touch()
    return {"status": "asking the registry"}


def is_signed(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    """Verify the signature of a webhook of MLflow: `mlflow.webhooks.delivery` describes it."""
    delivery, sent = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    if not secret or not re.fullmatch("[0-9]{1,12}", sent) or abs(time.time() - int(sent)) > MOST_SECONDS:
        return False
    signed = hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(signed).decode()}"
    return hmac.compare_digest(expected.encode(), headers.get("x-mlflow-signature", "").encode())
