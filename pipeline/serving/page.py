"""The try-it page at `/`: its files, and the endpoints that only the page needs.

The page works without a network, and its Content-Security-Policy allows no inline scripts and no other host.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from pipeline.evaluation.saliency import explain
from pipeline.serving.app import get_model
from pipeline.serving.errors import RequestError
from pipeline.serving.served_model import ServedModel

STATIC = Path(__file__).parent / "static"
FILES = {"page.js": "text/javascript", "page.css": "text/css"}  # beside index.html
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # so that an upgraded server's page is loaded anew
}

router = APIRouter()
_explaining = asyncio.Lock()  # one at a time: an explanation takes as long as dozens of predictions


@router.get("/")
async def show_page() -> FileResponse:
    """The page itself. It contains nothing of the model, and needs no key."""
    return FileResponse(STATIC / "index.html", media_type="text/html", headers=HEADERS)


@router.get("/static/{name}")
async def send_file(name: str) -> FileResponse:
    """A script or a style sheet of the page."""
    if name not in FILES:
        raise HTTPException(404, f"{name} is not a file of the page")
    return FileResponse(STATIC / name, media_type=FILES[name], headers=HEADERS)


@router.get("/v1/model")
async def describe_model(request: Request) -> dict[str, Any]:
    """Describe the model that answers now: its version, classes, and the images that it takes."""
    served = get_model(request)
    contract = served.contract
    return {
        "name": served.name,
        "version": served.version,
        "model": served.sha256,
        "dataset": contract.dataset,
        "classes": contract.classes,
        "classes_ko": contract.classes_ko,
        "answers": served.classes,
        "answers_ko": contract.answers_ko,
        "height": contract.height,
        "width": contract.width,
        "channels": contract.channels,
        "ground": contract.ground,
    }


@router.post("/v1/explain")
async def explain_answer(request: Request) -> dict[str, Any]:
    """Explain the most probable class of one picture: how much each pixel speaks for it.

    Answers with the picture as the model gets it, and with the saliency of `pipeline.evaluation.saliency`.
    """
    served = get_model(request)
    images = await request.app.state.bodies.read_images(request, served.contract)
    if len(images) != 1:
        raise RequestError("cannot explain several pictures at once", expected="1", found=str(len(images)))
    async with _explaining:
        return await run_in_threadpool(_explain, served, images[0])


def _explain(served: ServedModel, image: np.ndarray) -> dict[str, Any]:
    contract = served.contract
    label = int(served.predict(image[None])[0].argmax())
    saliency = explain(served.predict, image, label, contract.ground)
    return {
        "version": served.version,
        "model": served.sha256,
        "label": label,
        "class": served.classes[label],
        "class_ko": contract.answers_ko[label] if contract.answers_ko else None,
        "image": image.tolist(),
        "saliency": saliency.astype(float).round(4).tolist(),
    }
