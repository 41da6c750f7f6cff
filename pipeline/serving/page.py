"""The try-it page at `/`: its files, and the endpoints that only the page needs.

The page works without a network, and its Content-Security-Policy allows no inline scripts and no other host.
"""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import FileResponse

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
    served = request.app.state.model.current()
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
