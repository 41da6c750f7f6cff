"""Decoders of pictures and archives: damaged files are refused in words, whatever the damage, and fill no memory."""

import gzip
import io
import random
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import idx
from pipeline.data.batch_formats import read_batch
from pipeline.data.decoders import MOST_FILE_BYTES, MOST_PIXELS, decoding, open_npz, read_picture
from pipeline.data.prediction_input import MOST_BYTES, read_pictures
from pipeline.data.table import Dataset
from pipeline.errors import DataError

DATASET = Dataset("shapes", 6, 6, ("Shirt", "Bag", "Boot"), ("셔츠", "가방", "부츠"), flip=True)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 6, 6), dtype=np.uint8)
LABELS = np.arange(6) % 3
SIDEWAYS = 6  # EXIF orientation: to be turned clockwise
NPY = "images.npy", "labels.npy"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def sideways() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = SIDEWAYS
    return exif


def dump(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def announce(shape: tuple[int, ...], dtype: str) -> bytes:
    """The header of a stored array, without its values."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def pack(*arrays: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in zip(NPY, arrays, strict=True):
            archive.writestr(name, content)
    return buffer.getvalue()


def mark(archive: bytes, local: int, central: int, value: int) -> bytes:
    """Set a byte in the headers of every file of a zip archive."""
    content = bytearray(archive)
    for signature, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = content.find(signature)
        while at >= 0:
            content[at + offset] = value
            at = content.find(signature, at + 1)
    return bytes(content)


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


GREY = Image.fromarray(IMAGES[0])
PNG = encode(GREY, "PNG")
AFTER_HEADER = PNG.index(b"IDAT") - 4
GOOD = dump(IMAGES), dump(LABELS)
DEEP = b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000
HUGE_NUMBER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (0x" + b"f" * 5000 + b",), }\n"
BOMB = zlib.compress(bytes(20_000_000))


def with_chunk(kind: bytes, data: bytes) -> bytes:
    return PNG[:AFTER_HEADER] + chunk(kind, data) + PNG[AFTER_HEADER:]


@pytest.mark.parametrize(
    "content",
    [
        with_chunk(b"cHRM", bytes(2)),
        with_chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
        with_chunk(b"iCCP", b"a\0\0" + BOMB),
        with_chunk(b"eXIf", b"?"),
        PNG[: AFTER_HEADER + 9],
    ],
    ids=["short cHRM", "text bomb", "large profile", "no exif", "cut"],
)
def test_a_picture_that_the_decoder_refuses_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b/Bag").mkdir(parents=True)
    (tmp_path / "b/Bag/x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)^batch b is refused: .*/b/Bag/x\.png is damaged.*found: +\w"):
        list(read_batch(tmp_path / "b", DATASET))
    with pytest.raises(DataError, match=r"/b/Bag/x\.png is damaged"):
        read_pictures(tmp_path / "b/Bag/x.png", (6, 6), invert=False, background=0)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (mark(pack(*GOOD), 6, 8, 1), "encrypted"),
        (mark(pack(*GOOD), 8, 10, 99), r"images\.npy is compressed by method 99"),
        (pack(*GOOD, method=zipfile.ZIP_BZIP2), r"images\.npy is compressed by method 12"),
        (pack(DEEP, DEEP), "(EOF in multi-line statement|.*too many nested parentheses)"),  # Python 3.11; later ones
        (pack(announce((10**13, 6, 6), "|u1"), GOOD[1]), r"the length of images\.npy differs from its header"),
        (pack(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(HUGE_NUMBER)) + HUGE_NUMBER, GOOD[1]), "its header"),
        (pack(announce((-6, 6, 6), "|u1"), GOOD[1]), "its header"),
        (pack(b"", b""), "magic string"),
        (b"", "not a zip file"),
    ],
    ids=["encrypted", "unknown", "bzip2", "torn", "huge", "hexadecimal", "negative", "no header", "empty"],
)
def test_an_archive_that_the_decoder_refuses_is_refused_by_name(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s)^batch b\.npz is refused: .*/b\.npz is damaged.*found: .*{found}"):
        list(read_batch(tmp_path / "b.npz", DATASET))
    with pytest.raises(DataError, match=rf"(?s)b\.npz is damaged.*found: .*{found}"):
        read_pictures(tmp_path / "b.npz", (6, 6), invert=False, background=0)


def test_huge_labels_and_real_bombs_take_no_memory(tmp_path: Path) -> None:
    """What a header claims is compared with what is there, and what is there is read in pieces."""
    many, blank = 2_000_000, bytes(36 * 2_000_000)
    lies = {
        "labels.npz": pack(GOOD[0], announce((10**13,), "<i8")),
        "both.npz": pack(announce((10**13, 6, 6), "|u1"), announce((10**13,), "<i8")),
        "bomb.npz": pack(announce((many, 6, 6), "|u1") + blank, announce((many,), "<i8") + b"\xff" * 8 * many),
        "wide.npz": pack(announce((1, 9000, 8000), "|u1") + blank, GOOD[1]),
    }
    for name, content in lies.items():
        (tmp_path / name).write_bytes(content)
        assert len(content) < 300_000
    del lies, blank
    (tmp_path / "deep/Bag").mkdir(parents=True)
    (tmp_path / "deep/Bag/x.png").write_bytes(encode(Image.new("L", (9000, 9000)), "PNG"))
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx/images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 2**31, 6, 6))
    (tmp_path / "idx/labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2I", 0x801, 2**31)))
    tracemalloc.start()
    for path in tmp_path.iterdir():
        with pytest.raises(DataError):
            for _ in read_batch(path, DATASET):
                pass
    for name in ("both.npz", "bomb.npz", "wide.npz", "deep/Bag/x.png", "idx/images-idx3-ubyte"):
        with pytest.raises(DataError):
            read_pictures(tmp_path / name, (6, 6), invert=False, background=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
    assert many * 36 > MOST_BYTES


def test_pictures_beyond_the_limits_are_refused(tmp_path: Path) -> None:
    large, heavy = tmp_path / "large.png", tmp_path / "heavy.png"
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    large.write_bytes(PNG[:8] + chunk(b"IHDR", header) + PNG[AFTER_HEADER:])
    with heavy.open("wb") as file:
        file.truncate(MOST_FILE_BYTES + 1)
    for path, limit in ((large, f"{MOST_PIXELS:,} pixels"), (heavy, f"{MOST_FILE_BYTES:,} bytes")):
        with pytest.raises(DataError, match=f"is too large\n.*at most {limit}"):
            read_picture(path)


def damage(content: bytes, draw: random.Random) -> bytes:
    """Flip bits, overwrite, cut, remove or repeat a part."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(damaged))
        part = slice(at, at + draw.randrange(1, 40))
        match draw.randrange(6):
            case 0:
                damaged[at] ^= 1 << draw.randrange(8)
            case 1:
                damaged[at : at + 4] = draw.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", draw.randbytes(4)))
            case 2 if at:
                del damaged[at:]
            case 3 if len(damaged) > 41:
                del damaged[part]
            case 4:
                damaged[at:at] = damaged[part]
            case _:
                damaged[part] = draw.randbytes(len(damaged[part]))
    return bytes(damaged)


def damage_chunks(content: bytes, draw: random.Random) -> bytes:
    """Do so to the content of a PNG's chunk, or change its kind, and give it the right checksum."""
    at, chunks = 8, []
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    which = draw.randrange(len(chunks))
    kind, data = chunks[which]
    chunks[which] = (
        draw.choice([kind, draw.choice(chunks)[0], b"acTL", b"fcTL", b"pHYs", b"gAMA"]),
        damage(data or b"?", draw),
    )
    return content[:8] + b"".join(chunk(*one) for one in chunks)


def damage_arrays(_: bytes, draw: random.Random) -> bytes:
    """Damage stored arrays within a sound archive, mostly in their headers."""
    arrays = [damage(array[:96], draw) + array[96:] if draw.random() < 0.8 else array for array in GOOD]
    return pack(*arrays, method=draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


RICH = Image.fromarray(np.stack([IMAGES[0]] * 4, axis=-1), "RGBA")
SAMPLES: list[tuple[str, bytes, Callable[[bytes, random.Random], bytes]]] = [
    (".png", encode(GREY.convert("P"), "PNG", exif=sideways(), dpi=(72, 72)), damage),
    (".png", encode(RICH, "PNG", exif=sideways(), icc_profile=b"profile"), damage_chunks),
    (".png", with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a")), damage_chunks),
    (".jpg", encode(GREY, "JPEG", exif=sideways()), damage),
    (".jpg", encode(RICH.convert("CMYK"), "JPEG", progressive=True, icc_profile=b"profile"), damage),
    (".npz", pack(*GOOD), damage),
    (".npz", b"", damage_arrays),
    ("-images-idx3-ubyte", idx_bytes(IMAGES), damage),
    ("-images-idx3-ubyte.gz", gzip.compress(idx_bytes(IMAGES)), damage),
]


@pytest.mark.parametrize(
    ("ending", "content", "spoil"), SAMPLES, ids=[f"{number}{ending}" for number, (ending, _, _) in enumerate(SAMPLES)]
)
def test_no_damage_raises_anything_but_a_refusal(
    tmp_path: Path, ending: str, content: bytes, spoil: Callable[[bytes, random.Random], bytes]
) -> None:
    draw, refused, tries = random.Random(0), 0, 350
    path = tmp_path / ("b.npz" if ending == ".npz" else f"b/Bag/x{ending}" if "idx" not in ending else f"b/x{ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if "idx" in ending:
        idx.write(path.with_name("x-labels-idx1-ubyte"), LABELS.astype(np.uint8))
    batch = path if ending == ".npz" else tmp_path / "b"
    for _ in range(tries):
        path.write_bytes(spoil(content, draw))
        for read in (
            lambda: list(read_batch(batch, DATASET)),
            lambda: read_pictures(path, (6, 6), invert=False, background=0),
        ):
            try:
                read()
            except DataError:
                refused += 1
    assert 0.2 * tries < refused <= 2 * tries


def test_what_is_no_fault_of_the_file_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), decoding(tmp_path, "?"):
        raise PermissionError(13, "Permission denied")
    (tmp_path / "b.npz").write_bytes(pack(*GOOD))
    with pytest.raises(KeyError), open_npz(tmp_path / "b.npz", "images"):
        raise KeyError("a bug of our own")


def test_pictures_of_all_kinds_are_turned_upright_and_grey(tmp_path: Path) -> None:
    """The same for a batch and for `pipeline predict`, whose pictures come from the same cameras."""
    upright = np.repeat(np.repeat(np.array([[0, 80], [160, 240]], np.uint8), 3, axis=0), 3, axis=1)
    stored = Image.fromarray(np.rot90(upright))  # counter-clockwise
    deep = Image.fromarray((np.rot90(upright).astype(np.uint16) << 8) + 255)
    kinds = {
        "grey.png": encode(stored, "PNG", exif=sideways()),
        "colour.png": encode(stored.convert("RGB"), "PNG", exif=sideways()),
        "deep.png": encode(deep, "PNG", exif=sideways()),
        "through.png": encode(stored.convert("RGBA"), "PNG", exif=sideways()),
        "grey.jpg": encode(stored, "JPEG", exif=sideways(), quality=100),
        "colour.jpg": encode(stored.convert("RGB"), "JPEG", exif=sideways(), quality=100, subsampling=0),
        "print.jpg": encode(stored.convert("CMYK"), "JPEG", exif=sideways(), quality=100),
    }
    (tmp_path / "b/Bag").mkdir(parents=True)
    for name, content in kinds.items():
        (tmp_path / "b/Bag" / name).write_bytes(content)
    ((images, _),) = read_batch(tmp_path / "b", DATASET)
    assert len(images) == len(kinds)
    for name, image in zip(sorted(kinds), images, strict=True):
        assert np.abs(image.astype(int) - upright).max() <= 3, name
        (picture,) = read_pictures(tmp_path / "b/Bag" / name, (6, 6), invert=False, background=0)
        assert (picture.pixels == image).all(), name


def test_a_picture_has_its_size_once_it_is_upright(tmp_path: Path) -> None:
    tall = Dataset("tall", 4, 6, ("Bag", "Boot"), ("가방", "부츠"), flip=True)
    (tmp_path / "b/Bag").mkdir(parents=True)
    path = tmp_path / "b/Bag/x.png"
    Image.new("L", (4, 6)).save(path, exif=sideways())
    ((images, _),) = read_batch(tmp_path / "b", tall)
    assert images.shape == (1, 4, 6)
    Image.new("L", (6, 4)).save(path, exif=sideways())
    with pytest.raises(DataError, match=r"(?s)another size.*4 x 6 pixels.*6 x 4"):
        list(read_batch(tmp_path / "b", tall))
