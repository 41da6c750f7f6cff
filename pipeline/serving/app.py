"""The HTTP application of the server."""

import json
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from pipeline.serving.served_model import ModelHolder, ServedModel
from pipeline.serving.settings import ServeSettings

if TYPE_CHECKING:
    from collections.abc import Sequence


class TrafficLog(Protocol):
    """The part of the traffic log that the application uses."""

    def add(
        self, request_id: str, version: str, sha256: str, images: np.ndarray, probabilities: np.ndarray
    ) -> None: ...


def create_app(
    settings: ServeSettings, model: ModelHolder, log: TrafficLog | None = None, routers: "Iterable[APIRouter]" = ()
) -> FastAPI:
    """Create the application. `app.state` has `settings`, `model` and `log` for the routers.

    Args:
        log: the traffic log; None: requests are not logged.
        routers: more endpoints, such as those of the page and of the feedback.
    """
    app = FastAPI(title="pipeline serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.settings, app.state.model, app.state.log = settings, model, log
    for router in routers:
        app.include_router(router)

    @app.post("/v1/predict")
    async def predict(request: Request) -> Response:
        served = model.current()
        images = np.asarray(json.loads(await request.body())["images"]).astype(np.uint8)
        probabilities, request_id = served.predict(images), str(uuid.uuid4())
        if log:
            log.add(request_id, served.version, served.sha256, images, probabilities)
        return Response(json.dumps(describe(served, request_id, probabilities)), media_type="application/json")

    return app


def describe(served: ServedModel, request_id: str, probabilities: np.ndarray) -> dict[str, Any]:
    """Describe the answers to a request: class names, probabilities, and the model that gave them."""
    names, names_ko = served.classes, served.contract.answers_ko
    return {
        "version": served.version,
        "model": served.sha256,
        "request_id": request_id,
        "predictions": [_describe_one(names, names_ko, row) for row in probabilities.astype(float).round(6).tolist()],
    }


def _describe_one(names: "Sequence[str]", names_ko: "Sequence[str]", row: list[float]) -> dict[str, Any]:
    label = max(range(len(row)), key=row.__getitem__)
    return {
        "label": label,
        "class": names[label],
        "class_ko": names_ko[label] if names_ko else None,
        "probability": row[label],
        "probabilities": dict(zip(names, row, strict=True)),
    }
