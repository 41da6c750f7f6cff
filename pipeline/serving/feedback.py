"""The endpoint for labels that come after the answer: a person's correction, or a result that is known later.

A label is stored in `.pipeline/feedback/`, with the picture if it was sent again. It reaches the training data only by
`pipeline add-data --from-traffic`, which a person runs.
"""

import base64
import binascii
import io
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from pipeline.data.traffic import FEEDBACK, Label, add_labels, picture_path
from pipeline.events import record_event
from pipeline.files import PRIVATE, atomic_file
from pipeline.image_class_names import find_class, list_classes
from pipeline.models.contract import Contract
from pipeline.serving.app import get_model
from pipeline.serving.errors import RequestError
from pipeline.serving.images import convert_pictures, count_pixels

router = APIRouter()


def _require_printable(name: str) -> str:
    """Return a name without the spaces around it. Raises ValueError if it has line breaks or control characters."""
    if not name.isprintable():
        raise ValueError("not printable")
    return name.strip()


class _Feedback(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: Annotated[str, Field(max_length=36)]
    index: Annotated[int, Field(ge=0, lt=2**32)] = 0
    label: Annotated[int, Field(ge=0)] | Annotated[str, Field(max_length=1000)]
    who: Annotated[str, Field(max_length=100), AfterValidator(_require_printable)] = ""
    picture: str | None = None  # base64


@router.post("/v1/feedback")
async def take_feedback(request: Request) -> dict[str, Any]:
    """Store the true class of an image that was answered. Always needs the API key: see `access.py`."""
    state, served = request.app.state, get_model(request)
    feedback = _parse(await state.bodies.read(request))
    label = _find_label(feedback.label, served.contract)
    invert = request.query_params.get("invert", "") in ("1", "true")
    stored = await run_in_threadpool(_store, state.settings.root, feedback, label, served.contract, invert)
    evidence = {"request_id": stored.request_id, "index": stored.index, "label": label, "picture": stored.has_picture}
    await run_in_threadpool(
        record_event,
        "feedback.received",
        evidence,
        dataset=served.contract.dataset,
        version=served.version,
        root=state.settings.root,
    )
    return evidence


def _parse(body: bytes) -> _Feedback:
    expected = "JSON with request_id, label, and if wanted index, who and picture (base64)"
    try:
        feedback = _Feedback.model_validate_json(body)
        uuid.UUID(feedback.request_id)
    except ValidationError as error:
        found = "; ".join(".".join(map(str, detail["loc"])) + f" {detail['msg']}" for detail in error.errors()[:3])
        raise RequestError("the feedback cannot be read", expected=expected, found=found[:300]) from None
    except ValueError:
        raise RequestError(
            "request_id is not the id of a request", expected="request_id of an answer", found=feedback.request_id
        ) from None
    return feedback


def _find_label(written: int | str, contract: Contract) -> str:
    """Return the English name of a class of the dataset that was given by number or by name."""
    labels = {written} if isinstance(written, int) else find_class(written, contract.classes, contract.classes_ko)
    if len(labels) != 1 or max(labels) >= len(contract.classes):
        raise RequestError(
            "the label is not a class",
            expected=f"0 to {len(contract.classes) - 1}, or one of {list_classes(contract.classes)}",
            found=json.dumps(written, ensure_ascii=False)[:200],
        )
    return contract.classes[labels.pop()]


def _store(root: Path, feedback: _Feedback, name: str, contract: Contract, invert: bool) -> Label:
    request_id = str(uuid.UUID(feedback.request_id))
    if feedback.picture is not None:
        path = picture_path(root / FEEDBACK, request_id, feedback.index)
        _write_picture(path, _decode(feedback.picture, contract, invert))
    label = Label(
        request_id=request_id,
        index=feedback.index,
        label=name,
        who=feedback.who or "unknown",
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        has_picture=feedback.picture is not None,
    )
    add_labels(root / FEEDBACK, [label])
    return label


def _decode(picture: str, contract: Contract, invert: bool) -> np.ndarray:
    try:
        content = base64.b64decode(picture, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("the picture cannot be read", expected="base64", found="other characters") from None
    pictures = [("the picture", content)]
    count_pixels(pictures)
    return convert_pictures(pictures, contract, invert=invert)[0]


def _write_picture(path: Path, image: np.ndarray) -> None:
    """Write the image as the model gets it: what was sent is not stored."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with atomic_file(path, mode=PRIVATE) as partial:
        partial.write_bytes(buffer.getvalue())
