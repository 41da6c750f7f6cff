"""The open inference protocol v2, which clients of KServe, Triton and MLServer use. JSON only, without gRPC.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request

from pipeline.serving.app import answer, get_model
from pipeline.serving.errors import RequestError
from pipeline.serving.images import convert_array, describe_shape
from pipeline.serving.served_model import ServedModel

INPUT, OUTPUT = "images", "probabilities"  # names of the tensors

router = APIRouter(prefix="/v2")


@router.get("")
async def describe_server() -> dict[str, Any]:
    """Describe the server."""
    return {"name": "pipeline serve", "version": version("fastapi"), "extensions": []}


@router.get("/health/live")
async def is_live() -> dict[str, Any]:
    """Answer while the process runs."""
    return {"live": True}


@router.get("/health/ready")
async def is_ready(request: Request) -> dict[str, Any]:
    """Answer 200 if a model is loaded."""
    get_model(request)
    return {"ready": True}


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{number}/ready")
async def is_model_ready(request: Request, name: str, number: str | None = None) -> dict[str, Any]:
    """Answer 200 if this model answers now."""
    _find(request, name, number)
    return {"name": name, "ready": True}


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{number}")
async def describe_model(request: Request, name: str, number: str | None = None) -> dict[str, Any]:
    """Describe the tensors of the model."""
    served = _find(request, name, number)
    return {
        "name": served.name,
        "versions": [served.version],
        "platform": "litert",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *served.contract.shape]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(served.classes)]}],
    }


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{number}/infer")
async def infer(request: Request, name: str, number: str | None = None) -> dict[str, Any]:
    """Answer with the probabilities of all classes, in one flat list."""
    served = _find(request, name, number)
    body = await request.app.state.bodies.read(request)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON", found=str(error)[:200]) from None
    tensor = _find_tensor(content, served)
    has_switches = b"true" in body or b"false" in body
    most = request.app.state.settings.params.max_images
    images = convert_array(_nest(tensor, served), served.contract, most, may_have_switches=has_switches)
    served, probabilities = await answer(request, images)
    given = content.get("id")
    return {
        "model_name": served.name,
        "model_version": served.version,
        "id": given if isinstance(given, str) else request.scope["request_id"],
        "outputs": [
            {
                "name": OUTPUT,
                "datatype": "FP32",
                "shape": list(probabilities.shape),
                "data": probabilities.astype(float).ravel().tolist(),
            }
        ],
    }


def _find(request: Request, name: str, number: str | None) -> ServedModel:
    """Return the model that answers, if it is the one that was asked for."""
    served = get_model(request)
    if name != served.name or number not in (None, served.version):
        raise RequestError(
            "the server has another model",
            status=404,
            expected=f"{served.name} version {served.version}",
            found=name if number is None else f"{name} version {number}",
        )
    return served


def _find_tensor(content: Any, served: ServedModel) -> dict[str, Any]:
    expected = f'{{"inputs": [{{"name": "{INPUT}", "datatype": "UINT8", "shape": [...], "data": [...]}}]}}'
    tensors = content.get("inputs") if isinstance(content, dict) else None
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise RequestError("the body does not have one input", expected=expected)
    tensor = tensors[0]
    if tensor.get("datatype") != "UINT8":
        raise RequestError("the input has another type", expected="UINT8", found=str(tensor.get("datatype"))[:50])
    shape = tensor.get("shape")
    sides = shape if isinstance(shape, list) and all(type(side) is int and 0 <= side < 2**31 for side in shape) else []
    if not sides or tuple(sides[1:]) != served.contract.shape:
        raise RequestError(
            "the input has another shape", expected=describe_shape(served.contract), found=str(shape)[:200]
        )
    return tensor


def _nest(tensor: dict[str, Any], served: ServedModel) -> Any:
    """Return the data of a tensor as nested lists. Both forms are allowed: flat in row-major order, or nested."""
    data, shape = tensor.get("data"), tensor["shape"]
    if not isinstance(data, list):
        raise RequestError("the input has no data", expected=describe_shape(served.contract))
    is_nested = not data or isinstance(data[0], list)
    expected = shape[0] if is_nested else math.prod(shape)
    if len(data) != expected:
        problem = f"the data do not have as many {'images' if is_nested else 'values'} as the shape says"
        raise RequestError(problem, expected=f"{expected:,}", found=f"{len(data):,}")
    return data if is_nested else _split(data, shape)


def _split(values: list[Any], shape: Sequence[int]) -> list[Any]:
    if len(shape) == 1:
        return values
    size = len(values) // max(1, shape[0])
    return [_split(values[start : start + size], shape[1:]) for start in range(0, len(values), size)]
