"""The HTTP application of the server: predictions, MLflow's endpoints, health and metrics."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from pipeline.errors import PipelineError, TrackingError
from pipeline.serving.access import protect
from pipeline.serving.batching import Batcher
from pipeline.serving.bodies import BodyReader, Limits
from pipeline.serving.errors import NotAvailable, RequestError, create_error_response
from pipeline.serving.metrics import Metrics
from pipeline.serving.served_model import ModelHolder, ServedModel
from pipeline.serving.settings import ServeSettings
from pipeline.serving.shadow import Shadow
from pipeline.serving.traffic_log import TrafficLog

MLFLOW_VERSION = "3.17.2"  # of the scoring protocol: /invocations, /ping, /version


def create_app(
    settings: ServeSettings,
    model: ModelHolder,
    log: TrafficLog | Shadow | None = None,
    routers: Iterable[APIRouter] = (),
    metrics: Metrics | None = None,
) -> FastAPI:
    """Create the application.

    `app.state` has `settings`, `model`, `log`, `metrics` and `bodies` for the routers, and after the start `batcher`.

    Args:
        log: the traffic log; None: requests are not logged.
        routers: more endpoints, such as those of the page and of the feedback.
        metrics: of this process; None: new ones.
    """
    app = FastAPI(title="pipeline serve", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    state, metrics = app.state, metrics or Metrics()
    state.settings, state.model, state.log, state.metrics = settings, model, log, metrics
    state.bodies = BodyReader(Limits.of(settings.params))
    for router in (_router, *routers):
        app.include_router(router)
    app.add_exception_handler(PipelineError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_middleware(_Protected, settings=settings, metrics=metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    params, state = app.state.settings.params, app.state
    batcher = Batcher(state.model, state.metrics, max_batch=params.max_batch, max_waiting=params.max_waiting)
    state.batcher = batcher
    batcher.start()
    yield
    await asyncio.to_thread(batcher.stop)
    if state.log:
        await asyncio.to_thread(state.log.close)


class _Protected:
    """`protect` in the form of a middleware."""

    def __init__(self, app: Any, settings: ServeSettings, metrics: Metrics) -> None:
        self._app = protect(app, settings, metrics)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


_router = APIRouter()


@_router.post("/v1/predict")
async def predict(request: Request) -> Response:
    """Answer with class names and probabilities."""
    served, probabilities = await _predict(request)
    return _respond(describe(served, request.scope["request_id"], probabilities))


@_router.post("/invocations")
async def invocations(request: Request) -> Response:
    """Answer as MLflow's server does: the outputs of the model."""
    served, probabilities = await _predict(request)
    outputs = probabilities[:, 1:] if served.contract.task.units == 1 else probabilities
    return _respond({"predictions": outputs.astype(float).tolist()})


@_router.get("/ping")
async def ping(request: Request) -> Response:
    """Answer 200 if a model is loaded."""
    get_model(request)
    return PlainTextResponse("\n")


@_router.get("/version")
async def version() -> Response:
    """Name the version of MLflow whose protocol is followed."""
    return PlainTextResponse(MLFLOW_VERSION)


@_router.get("/health/live")
async def live() -> Response:
    """Answer while the process runs."""
    return _respond({"status": "live"})


@_router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Answer 200 if a model is loaded, with the version, and the reason if it is not the newest one."""
    holder: ModelHolder = request.app.state.model
    served = get_model(request)
    facts = {"status": "ready", "name": served.name, "version": served.version, "model": served.sha256}
    return _respond(facts | {"problem": holder.problem, "checked_at": holder.checked_at})


@_router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Export the metrics for Prometheus."""
    state = request.app.state
    state.metrics.log_dropped.set(state.log.dropped if state.log else 0)
    return Response(state.metrics.export(), media_type="text/plain; version=0.0.4; charset=utf-8")


def get_model(request: Request) -> ServedModel:
    """Return the model that answers.

    Raises:
        NotAvailable: none is loaded.
    """
    try:
        holder: ModelHolder = request.app.state.model
        return holder.current()
    except TrackingError as error:
        raise NotAvailable(error.problem, found=error.found) from None


async def _predict(request: Request) -> tuple[ServedModel, np.ndarray]:
    images = await request.app.state.bodies.read_images(request, get_model(request).contract)
    return await answer(request, images)


async def answer(request: Request, images: np.ndarray) -> tuple[ServedModel, np.ndarray]:
    """Answer the images of a request uint8 [n, *shape], and log it. Returns the model and float32 [n, classes].

    Raises:
        NotAvailable: too many images wait, or no model is loaded.
    """
    state, scope = request.app.state, request.scope
    served, probabilities = await state.batcher.predict(images)
    scope["facts"] |= {"images": len(images), "version": served.version}
    if state.log:
        state.log.add(scope["request_id"], served.version, served.sha256, images, probabilities)
    return served, probabilities


def describe(served: ServedModel, request_id: str, probabilities: np.ndarray) -> dict[str, Any]:
    """Describe the answers to a request: class names, probabilities, and the model that gave them."""
    names, names_ko = served.classes, served.contract.answers_ko
    return {
        "version": served.version,
        "model": served.sha256,
        "request_id": request_id,
        "predictions": [_describe_one(names, names_ko, row) for row in probabilities.astype(float).round(6).tolist()],
    }


def _describe_one(names: Sequence[str], names_ko: Sequence[str], row: list[float]) -> dict[str, Any]:
    label = max(range(len(row)), key=row.__getitem__)
    return {
        "label": label,
        "class": names[label],
        "class_ko": names_ko[label] if names_ko else None,
        "probability": row[label],
        "probabilities": dict(zip(names, row, strict=True)),
    }


def _respond(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content, ensure_ascii=False), media_type="application/json")


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PipelineError)
    return create_error_response(error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown path or method in the form of the other errors."""
    assert isinstance(error, HTTPException)
    problem = {404: "there is no such path", 405: "the path has no such method"}.get(error.status_code, error.detail)
    found = f"{request.method} {request.url.path}"[:200]
    return create_error_response(RequestError(problem, status=error.status_code, found=found), error.headers)
