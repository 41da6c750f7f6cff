"""Pictures for prediction: decoded as for an import or a batch, inverted, and resized to the size of the model.

A picture gets the resizing of the contract, and the background of the training images around it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import idx
from pipeline.data.batch_formats import IMAGES
from pipeline.data.decoders import (
    BLACK,
    IMAGE_SUFFIXES,
    decode_picture,
    is_picture,
    open_npz,
    open_picture,
    read_file,
    resize,
)
from pipeline.data.image_background import Ground, border_pixels
from pipeline.errors import DataError

MIN_DIFFERENCE = 64  # grey values between two different backgrounds
MOST_BYTES = 2**26  # limit for the pixels in a file of arrays
FORMATS = f"pictures ({', '.join(IMAGE_SUFFIXES)}), .npz files with `images`, or idx files (*{IMAGES}[.gz])"

Shape = tuple[int, ...]  # (height, width) for grey, (height, width, 3) for colour


@dataclass(frozen=True)
class Picture:
    """An image in the form that the model takes."""

    name: str  # its file, with the position in a file of arrays: `images.npz[3]`
    pixels: np.ndarray  # uint8 [*shape]
    notes: tuple[str, ...] = ()  # changes and warnings


def read_pictures(
    path: Path, shape: Shape, *, invert: bool, background: Ground | None, resizing: str = "fit"
) -> list[Picture]:
    """Read the images of a file.

    Args:
        shape: of the images that the model takes. A picture of another size is resized. Arrays must have this shape.
        invert: swap dark and bright, for a picture with a dark background if the model's is bright, or the reverse.
        background: of the training images; None if unknown. It is shown behind transparent parts, too.
        resizing: "fit" scales the picture with its proportions kept and pads it with the background; "crop" cuts off
            what is outside.

    Raises:
        DataError: the file has an unknown format, is damaged, empty or too large, or its arrays have another shape.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file", expected=FORMATS)
    if is_picture(path):
        content = read_file(path)
        return [convert_picture(content, path, shape, invert=invert, background=background, resizing=resizing)]
    images = _read_arrays(path, shape)
    if invert:
        images = 255 - images
    return [
        Picture(f"{path}[{place}]", pixels, tuple(_check_background(pixels, invert, background)))
        for place, pixels in enumerate(images)
    ]


def convert_picture(
    content: bytes,
    name: str | Path,
    shape: Shape,
    *,
    invert: bool = False,
    background: Ground | None,
    resizing: str = "fit",
) -> Picture:
    """Convert the content of a picture's file to the form that the model takes.

    Args:
        name: its file, for the name of the result and for messages.
        shape: see `read_pictures`, as for the others.

    Raises:
        DataError: it is not a picture, is damaged, or is too large.
    """
    from PIL import ImageOps

    ground = BLACK if background is None else (background,) if isinstance(background, int) else background
    behind = tuple(255 - value for value in ground) if invert else ground  # before the inversion
    channels, (height, width) = (3 if len(shape) == 3 else 1), shape[:2]
    decoded = decode_picture(content, name, channels, ground=behind, size=(height, width))
    if invert:
        decoded = ImageOps.invert(decoded)
    pixels = np.asarray(resize(decoded, (height, width), resizing, ground))
    notes = []
    if decoded.size != (width, height):
        notes.append(f"resized from {_describe_size(content, name, decoded.size)} to {height} x {width}")
        if background is None and resizing == "fit" and decoded.height * width != decoded.width * height:
            notes.append("padded with black: the background of the training images is unknown")
    original = np.asarray(decoded)  # padding hides the border
    return Picture(str(name), pixels, (*notes, *_check_background(original, invert, background)))


def _describe_size(content: bytes, name: str | Path, decoded: tuple[int, int]) -> str:
    """Describe the height and width of a picture that was decoded, perhaps at a smaller scale and turned."""
    width, height = open_picture(content, name).size
    if (width > height) != (decoded[0] > decoded[1]):
        width, height = height, width
    return f"{height} x {width}"


def _read_arrays(path: Path, shape: Shape) -> np.ndarray:
    if path.suffix == ".npz":
        with open_npz(path, "images") as (images,):
            fits = images.dtype == np.uint8 and not images.fortran
            _require(path, images.shape, shape, str(images), fits=fits)
            return images.read(images.shape[0])
    if not path.name.removesuffix(".gz").endswith(IMAGES):
        raise DataError(f"{path} has an unknown format", expected=FORMATS)
    found = idx.read_shape(path, 3)
    _require(path, found, shape, f"uint8 {list(found)}")
    return np.concatenate(list(idx.stream(path, 3)))


def _require(path: Path, stored: Shape, shape: Shape, found: str, *, fits: bool = True) -> None:
    """Refuse arrays of another shape by their header, before they are read."""
    if not fits or stored[1:] != shape or not stored[0]:
        raise DataError(
            f"{path} does not fit the model's input",
            expected=f"uint8 [n, {', '.join(map(str, shape))}] in C order",
            found=found,
            remedy="use pictures, which are resized",
        )
    if math.prod(stored) > MOST_BYTES:
        most = MOST_BYTES // math.prod(shape)
        raise DataError(
            f"{path} has too many images", expected=f"at most {most:,}", found=f"{stored[0]:,}", remedy="split the file"
        )


def _check_background(pixels: np.ndarray, inverted: bool, background: Ground | None) -> list[str]:
    if background is None:
        return []
    wanted, own = float(np.mean(background)), float(border_pixels(pixels[None]).mean())
    if abs(own - wanted) < MIN_DIFFERENCE or abs(own - wanted) <= abs(255 - own - wanted):
        return []
    trial = f"try it with{'out' * inverted} --invert"
    return [f"its background has grey value {own:.0f}, that of the training images {wanted:.0f}: {trial}"]
