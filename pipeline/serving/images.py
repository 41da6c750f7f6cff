"""The images in the body of a request: JSON arrays, an .npy array, or pictures.

Values are never converted: what is not a whole number from 0 to 255 is refused, with the reason. Pictures are decoded
and resized as `pipeline predict` does it.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.decoders import open_picture
from pipeline.data.prediction_input import convert_picture
from pipeline.models.contract import Contract
from pipeline.serving.errors import RequestError

MOST_PIXELS = 25_000_000  # of a picture before it is resized
SCALED = "send the grey values 0 to 255 as they are: the model scales them itself"
KEYS = ("images", "inputs", "instances")  # of the array in a JSON object; the last two are MLflow's


def describe_shape(contract: Contract) -> str:
    """Describe the images that a model takes."""
    return f"uint8 [n, {', '.join(map(str, contract.shape))}]"


def read_json(body: bytes, contract: Contract, most: int) -> np.ndarray:
    """Read images from JSON: an array, or an object with it as `images`, `inputs` or `instances`.

    Args:
        most: images in a request.

    Raises:
        RequestError: naming what was expected and found.
    """
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # invalid UTF-8 and numbers with thousands of digits are ValueErrors
        raise RequestError(
            "the body is not JSON", expected='{"images": [...]}', found=str(error)[:200] or type(error).__name__
        ) from None
    return convert_array(_find_array(content), contract, most, may_have_switches=b"true" in body or b"false" in body)


def convert_array(content: Any, contract: Contract, most: int, *, may_have_switches: bool) -> np.ndarray:
    """Convert nested lists of whole numbers to images.

    Args:
        may_have_switches: a value may be true or false, which Python would take as 1 and 0.

    Raises:
        RequestError: naming what was expected and found.
    """
    if not isinstance(content, list):
        raise RequestError("the images are not an array", expected=describe_shape(contract), found=_name_type(content))
    require_count(len(content), most)
    shape = (len(content), *contract.shape)
    try:
        if may_have_switches:
            raise ValueError
        pixels = _pack(content, shape)
    except (ValueError, TypeError):
        _explain(content, shape, "images", contract)
        pixels = _pack(content, shape)
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def read_npy(body: bytes, contract: Contract, most: int) -> np.ndarray:
    """Read images from the content of an .npy file. Its header is checked before memory is allocated.

    Raises:
        RequestError: naming what was expected and found.
    """
    expected, file = f"{describe_shape(contract)} in an .npy file that NumPy wrote", io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except Exception as error:  # NumPy raises nearly anything for a damaged header
        raise RequestError("the body is not an .npy file", expected=expected, found=str(error)[:200]) from None
    if dtype != np.uint8:
        remedy = SCALED if dtype.kind == "f" else "images.astype(numpy.uint8)"
        raise RequestError("the array has another type", expected=expected, found=str(dtype), remedy=remedy)
    _require_shape(shape, contract)
    require_count(shape[0], most)
    if (held := len(body) - file.tell()) != math.prod(shape):
        problem = "the .npy file is truncated, or has more than one array"
        raise RequestError(problem, expected=f"{math.prod(shape):,} bytes behind its header", found=f"{held:,}")
    array = np.frombuffer(body, np.uint8, offset=file.tell())
    return array.reshape(shape, order="F" if fortran else "C")


def count_pixels(pictures: Sequence[tuple[str, bytes]]) -> int:
    """Return the number of pixels of pictures before they are resized. Reads only their headers.

    Raises:
        DataError: one is not a picture, or is damaged.
        RequestError: one has too many pixels.
    """
    total = 0
    for name, content in pictures:
        width, height = open_picture(content, name).size
        if width * height > MOST_PIXELS:
            raise RequestError(
                f"{name} is too large", status=413, expected=f"at most {MOST_PIXELS:,} pixels",
                found=f"{height} x {width}", remedy="scale it down",
            )  # fmt: skip
        total += width * height
    return total


def convert_pictures(pictures: Sequence[tuple[str, bytes]], contract: Contract, *, invert: bool) -> np.ndarray:
    """Decode and resize pictures as `pipeline predict` does.

    Args:
        pictures: names, for messages, and contents of the files.
        invert: swap dark and bright.

    Raises:
        DataError: one is not a picture, or is damaged.
    """
    return np.stack(
        [
            convert_picture(
                content, name, contract.shape,
                invert=invert, background=contract.ground, resizing=contract.resizing,
            ).pixels
            for name, content in pictures
        ]
    )  # fmt: skip


def require_count(count: int, most: int) -> None:
    """Refuse a request without images, or with too many.

    Raises:
        RequestError: naming both numbers.
    """
    if not count:
        raise RequestError("the request has no images", expected=f"1 to {most:,} images", found="0")
    if count > most:
        raise RequestError(
            "the request has too many images", status=413, expected=f"at most {most:,}", found=f"{count:,}",
            remedy="send several requests, or run: pipeline score",
        )  # fmt: skip


def _find_array(content: Any) -> Any:
    if isinstance(content, list):
        return content
    keys = ", ".join(KEYS)
    if not isinstance(content, Mapping):
        raise RequestError(
            "the body has no images", expected=f"an array, or an object with one of {keys}", found=_name_type(content)
        )
    if len(content) != 1 or not content.keys() & set(KEYS):
        found = ", ".join(list(content)[:5])[:200] or "an empty object"
        raise RequestError("the body has other keys than images", expected=f"one of {keys}", found=found)
    return next(iter(content.values()))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _require_shape(shape: Sequence[int], contract: Contract) -> None:
    if tuple(shape[1:]) != contract.shape:
        raise RequestError(
            "the images have another shape than the model's",
            expected=describe_shape(contract),
            found=str(list(shape)),
            remedy="send pictures as multipart/form-data, which are resized",
        )


def _pack(value: Any, shape: Sequence[int]) -> bytes:
    """Pack nested lists of the numbers 0 to 255. Raises ValueError or TypeError for everything else."""
    if type(value) is not list or len(value) != shape[0]:
        raise ValueError
    return bytes(value) if len(shape) == 1 else b"".join([_pack(item, shape[1:]) for item in value])


def _explain(value: Any, shape: Sequence[int], place: str, contract: Contract) -> None:
    """Refuse the first list or value that is not what the model takes."""
    if shape and (not isinstance(value, list) or len(value) != shape[0]):
        found = f"{len(value)} of them" if isinstance(value, list) else _name_type(value)
        raise RequestError(
            "the images have another shape than the model's",
            expected=describe_shape(contract),
            found=f"{found} at {place}, where {shape[0]} are due",
            remedy="send pictures as multipart/form-data, which are resized",
        )
    if shape:
        for number, item in enumerate(value):
            _explain(item, shape[1:], f"{place}[{number}]", contract)
    elif type(value) is not int or not 0 <= value <= 255:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        raise RequestError(
            "a value is a fraction" if is_number and value % 1 else "a value is not a grey value from 0 to 255",
            expected="whole numbers from 0 to 255",
            found=f"{json.dumps(value)[:100] if not isinstance(value, dict | list) else _name_type(value)} at {place}",
            remedy="send the grey values as they are: the model scales them itself" if is_number else "",
        )


def _name_type(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "true or false", int: "a number"}
    return names.get(type(value), "null" if value is None else "a number")
