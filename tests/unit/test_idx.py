"""The idx format, read in pieces."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import idx
from pipeline.data.table import Dataset
from pipeline.errors import DataError

DATASET = Dataset("shapes", 4, 5, ("a", "b", "c"), ("가", "나", "다"), flip=True)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (100, 4, 5), dtype=np.uint8)


@pytest.fixture
def pair(tmp_path: Path, images: np.ndarray) -> tuple[Path, Path]:
    idx.write(tmp_path / "images", images)
    idx.write(tmp_path / "labels", (np.arange(100) % 3).astype(np.uint8))
    return tmp_path / "images", tmp_path / "labels"


def read_pair(images: Path, labels: Path) -> None:
    for _ in idx.stream_pair(images, labels, DATASET):
        pass


def compress(path: Path) -> Path:
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def test_the_header_is_that_of_the_format(pair: tuple[Path, Path]) -> None:
    assert pair[0].read_bytes()[:16] == bytes.fromhex("00000803 00000064 00000004 00000005")
    assert pair[1].read_bytes()[:8] == bytes.fromhex("00000801 00000064")


@pytest.mark.parametrize("rows", [1, 30, 100, 1000])
@pytest.mark.parametrize("prepare", [Path, compress], ids=["plain", "gzip"])
def test_what_is_written_is_read_back(pair: tuple[Path, Path], images: np.ndarray, rows: int, prepare) -> None:
    chunks = list(idx.stream(prepare(pair[0]), 3, rows))
    assert max(len(chunk) for chunk in chunks) == min(rows, 100)
    assert (np.concatenate(chunks) == images).all()


def test_pairs_come_side_by_side(pair: tuple[Path, Path], images: np.ndarray) -> None:
    ((pixels, labels),) = idx.stream_pair(*pair, DATASET)
    assert (pixels == images).all()
    assert labels.tolist() == [0, 1, 2] * 33 + [0]


def test_a_file_without_rows_gives_one_empty_array(tmp_path: Path) -> None:
    idx.write(tmp_path / "images", np.empty((0, 4, 5), np.uint8))
    assert [chunk.shape for chunk in idx.stream(tmp_path / "images", 3)] == [(0, 4, 5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found:    an empty file"),
        (b"\x00\x00\x08", "found:    0x000008"),
        (b"\x00\x00\x0d\x03" + bytes(12), "found:    0x00000d03"),
        (b"\x00\x00\x08\x01" + bytes(4), "not an idx file of bytes with 3 dimensions"),
        (b"\x00\x00\x08\x03" + bytes(4), "ends within its header"),
        (b"PK\x03\x04", "expected: magic number 0x00000803"),
    ],
)
def test_other_headers_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(idx.stream(tmp_path / "images", 3))


@pytest.mark.parametrize("prepare", [Path, compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(("change", "found"), [(-1, "1999 bytes of values"), (1, "more bytes")])
def test_the_length_is_exactly_what_the_header_says(pair: tuple[Path, Path], change: int, found: str, prepare) -> None:
    content = pair[0].read_bytes()
    pair[0].write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(DataError, match=f"expected: 2000 bytes of values, for 100 x 4 x 5\n.*{found}"):
        list(idx.stream(prepare(pair[0]), 3))


@pytest.mark.parametrize("cut", [20, 600, -4])
def test_a_truncated_gzip_file_is_refused(pair: tuple[Path, Path], cut: int) -> None:
    compress(pair[0])
    pair[0].write_bytes(pair[0].read_bytes()[:cut])
    with pytest.raises(DataError, match="images is a damaged gzip file"):
        read_pair(*pair)


def test_a_gzip_file_with_a_flipped_byte_is_refused(pair: tuple[Path, Path]) -> None:
    content = bytearray(compress(pair[0]).read_bytes())
    content[1000] ^= 0xFF
    pair[0].write_bytes(content)
    with pytest.raises(DataError, match="images is a damaged gzip file"):
        read_pair(*pair)


def test_counts_must_agree(pair: tuple[Path, Path]) -> None:
    idx.write(pair[1], np.zeros(99, np.uint8))
    with pytest.raises(DataError, match="found:    100 images, 99 labels"):
        read_pair(*pair)


def test_the_first_label_out_of_range_is_named_with_its_position(tmp_path: Path) -> None:
    count = idx.CHUNK_ROWS + 500
    labels = np.zeros(count, np.uint8)
    labels[[idx.CHUNK_ROWS + 7, count - 1]] = [3, 9]
    idx.write(tmp_path / "images", np.zeros((count, 4, 5), np.uint8))
    idx.write(tmp_path / "labels", labels)
    with pytest.raises(DataError, match=f"expected: 0 to 2\n  found:    3 at position {idx.CHUNK_ROWS + 7}"):
        read_pair(tmp_path / "images", tmp_path / "labels")


@pytest.mark.parametrize("shape", [(5, 4), (2**31, 2**31)])
def test_another_shape_is_refused_before_any_pixel_is_read(pair: tuple[Path, Path], shape: tuple[int, int]) -> None:
    pair[0].write_bytes(bytes.fromhex("00000803") + struct.pack(">3I", 100, *shape))
    with pytest.raises(DataError, match=f"expected: 4 x 5 pixels.*\n  found:    {shape[0]} x {shape[1]}"):
        read_pair(*pair)
