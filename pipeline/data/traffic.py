"""The traffic log: the answers of a server, in files by hour, and the labels that came later. Format and reader.

A row is the answer for one image. The files are in `.pipeline/traffic/`. Their names are the hour (UTC), the time in
it and a random number, because several processes may write at the same time. The file of the present hour is an Arrow
stream, `*.arrows`: a killed writer leaves a file that can be read up to its last complete batch. When the hour is over,
it becomes `*.parquet`. A label is a line of JSON in `.pipeline/feedback/`, in files by day.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.drift_features import COLOUR_NAMES, NAMES
from pipeline.errors import DataError
from pipeline.files import PRIVATE
from pipeline.json_lines import append_json
from pipeline.workspace import STATE

TRAFFIC, FEEDBACK = STATE / "traffic", STATE / "feedback"
PICTURES = "pictures"  # in FEEDBACK: images that were sent with a label, as PNG files
OPEN, CLOSED = ".arrows", ".parquet"  # suffixes of a file that is being written, and of a finished one
HOUR = "%Y-%m-%dT%H"  # start of a file's name
MARGIN = timedelta(hours=1)  # between the time of a row and the hour of its file, at most
SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("index", pa.uint32()),  # of the image in its request
        ("time", pa.timestamp("us", tz="UTC")),
        ("version", pa.string()),  # of the registered model
        ("sha256", pa.string()),  # of its model.tflite
        ("predicted", pa.uint16()),  # the most probable class
        ("probabilities", pa.list_(pa.float32())),  # of every class
        *((name, pa.float64()) for name in (*NAMES, *COLOUR_NAMES)),  # null in grey: COLOUR_NAMES
        ("shape", pa.list_(pa.uint16())),  # of the image: height, width and, in colour, 3
        ("image", pa.binary()),  # uint8, row-major; null unless images are kept
        ("shadow_version", pa.string()),  # of the model that was asked too; null without one, as the next two
        ("shadow_sha256", pa.string()),
        ("shadow_probabilities", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Label:
    """The true class of an image that a server answered, as somebody told it."""

    request_id: str
    index: int
    label: str  # name of a class, in English
    who: str
    at: str  # time in UTC, ISO 8601
    has_picture: bool = False  # the image was sent again, and is in PICTURES


def read_traffic(
    directory: Path, since: datetime, until: datetime, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the logged rows from `since` up to `until`, in no particular order, some thousands in memory at a time.

    Args:
        directory: TRAFFIC of a main repository. It may be missing.
        since, until: times with a time zone.
        columns: names in SCHEMA; None: all but the images.

    Raises:
        DataError: a finished file is damaged.
    """
    import pyarrow.compute as pc

    names = [name for name in SCHEMA.names if name != "image"] if columns is None else list(columns)
    low, high = (pa.scalar(time.astimezone(UTC), SCHEMA.field("time").type) for time in (since, until))
    for path in list_files(directory, since, until):
        for batch in _read_batches(path, list(dict.fromkeys([*names, "time"]))):
            times = batch.column("time")
            inside = pc.and_(pc.greater_equal(times, low), pc.less(times, high))
            if (rows := batch.filter(inside).select(names)).num_rows:
                yield rows


def list_files(directory: Path, since: datetime, until: datetime) -> list[Path]:
    """List the files that may have rows from `since` up to `until`, sorted by name."""
    first, last = (time.astimezone(UTC).strftime(HOUR) for time in (since - MARGIN, until + MARGIN))
    names = {path.name for path in directory.glob("*") if path.suffix in (OPEN, CLOSED)}
    names -= {Path(name).stem + OPEN for name in names if name.endswith(CLOSED)}  # its conversion is finished
    return [directory / name for name in sorted(names) if first <= name[: len(first)] <= last]


def read_open_file(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the complete batches of a file that is being written, or whose writer was killed."""
    with path.open("rb") as file:
        try:
            with pa.ipc.open_stream(file) as stream:
                while True:
                    yield stream.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, OSError):  # the end, or a batch that is not complete
            return


def column_to_numpy(rows: pa.Table, name: str) -> np.ndarray:
    """Convert a column without nulls to an array [n]; a list column, whose lists are of one length, to [n, length]."""
    column = rows.column(name).combine_chunks()
    if pa.types.is_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def add_labels(directory: Path, labels: Sequence[Label]) -> None:
    """Append labels to the file of today, and return when they are on the disk. Several processes may do so at once.

    Args:
        directory: FEEDBACK of a main repository.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    append_json(directory / f"{datetime.now(UTC):%Y-%m-%d}.jsonl", map(asdict, labels), mode=PRIVATE)


def read_labels(directory: Path) -> dict[tuple[str, int], Label]:
    """Read all labels by request id and index. The latest one counts. Skips lines that a power failure cut off."""
    labels = {}
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                label = Label(**json.loads(line))
            except (ValueError, TypeError):
                continue
            labels[label.request_id, label.index] = label
    return labels


def picture_path(directory: Path, request_id: str, index: int) -> Path:
    """Return the path of an image that was sent with a label. directory: FEEDBACK of a main repository."""
    return directory / PICTURES / f"{request_id}-{index}.png"


def _read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    import pyarrow.parquet as pq

    if path.suffix == OPEN:
        try:
            for batch in read_open_file(path):
                yield pa.Table.from_batches([batch]).select(columns)
            return
        except FileNotFoundError:  # converted since it was listed
            path = path.with_suffix(CLOSED)
    try:
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, columns=columns)
    except FileNotFoundError:  # too old by now: deleted
        return
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is damaged", found=str(error), remedy=f"rm {shlex.quote(str(path))}") from None
