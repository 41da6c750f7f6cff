"""Fetch the images, check them, add the team's batches, and store all of it as Parquet."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.data import idx, table, window
from pipeline.data.batch_formats import Pair, read_batch
from pipeline.data.batches import INCOMING, find_batches, read_state, require_unchanged
from pipeline.data.catalog import CATALOG, Entry, load_catalog, load_entry
from pipeline.data.dataset_files import Fetched, fetch
from pipeline.files import atomic_directory, file_digest
from pipeline.params import Params
from pipeline.redaction import printable
from pipeline.stages.entrypoint import execute

RAW = Path("data/raw")
DATASET = Path("data/dataset")
SHOWN_SOURCES = 4


@dataclass(frozen=True)
class Part:
    """Images from one source, which can be read repeatedly, in chunks."""

    source: str  # `official`, or a batch's name
    read: Callable[[], Iterator[Pair]]


def run(params: Params) -> None:
    """Write `data/raw/` and `data/dataset/`. If anything fails, neither is written."""
    entry = load_entry(params.dataset.name)
    batches, before = find_batches(INCOMING), read_state(INCOMING)
    with atomic_directory(RAW) as raw, atomic_directory(DATASET) as tables:
        fetched = fetch(entry, Path(params.dataset.path), raw)
        dataset = fetched.dataset
        if dataset.name != entry.name:
            print(_describe_local_files(entry, fetched), flush=True)
        print(f"{entry.title} ({entry.licence}) as {dataset.name}: {fetched.origin}", flush=True)
        train, test = (
            Part(table.OFFICIAL, partial(idx.stream_pair, images, labels, dataset))
            for images, labels in (fetched.train, fetched.test)
        )
        added = [Part(path.name, partial(read_batch, path, dataset)) for path in batches]
        newest, share = params.dataset.window, params.dataset.window_older
        kept = [train, *added] if newest is None else _apply_window(train, added, newest, share, len(dataset.classes))
        for split, parts in (("train", kept), ("test", [test])):
            counts = write_table(tables / f"{split}.parquet", dataset, parts)
            images = f"{sum(counts.values()):,} images of {len(dataset.classes)} classes"
            print(f"{split}: {images} ({_describe(counts)})", flush=True)
        # DVC hashes the folder after this stage. It would record a batch that arrived meanwhile as already read.
        require_unchanged(INCOMING, before)


def _describe_local_files(entry: Entry, fetched: Fetched) -> str:
    """Return a warning about facts that are taken from the catalogue for a local directory's files."""
    digests = {path.name: file_digest(path) for path in (*fetched.train, *fetched.test)}
    others = load_catalog().values()
    same = next((one.name for one in others if digests == {file.name: file.sha256 for file in one.files}), None)
    advice = f"They are those of {same}: set dataset.name to {same}." if same else "If they are wrong, add an entry."
    flips = "keeps" if entry.flip else "loses"
    return (
        f"warning: the files of the {fetched.origin} are not those of {entry.name}. Class names, licence "
        f"({entry.licence}) and that a mirrored image {flips} its class are taken from its entry in {CATALOG}. "
        f"{advice}"
    )


def _apply_window(own: Part, batches: Sequence[Part], newest: int, share: float, classes: int) -> list[Part]:
    """Return a sample of the dataset's own images and of the older batches, and then the newest batches unchanged."""
    print(f"window: all of the newest batches, up to {newest}; {share:.0%} of each class of the rest", flush=True)
    thresholds = window.find_thresholds(own.read(), classes, share)

    def thin(part: Part) -> Part:
        return Part(part.source, lambda: window.sample(part.read(), thresholds))

    return [*map(thin, [own, *batches[:-newest]]), *batches[-newest:]]


def _describe(counts: Mapping[str, int]) -> str:
    """Describe the sources of images in one line."""
    shown = [f"{count:,} {source}" for source, count in list(counts.items())[:SHOWN_SOURCES]]
    rest = list(counts.values())[SHOWN_SOURCES:]
    return printable(", ".join([*shown, f"{sum(rest):,} from {len(rest)} more batches"] if rest else shown))


def write_table(path: Path, dataset: table.Dataset, parts: Sequence[Part]) -> dict[str, int]:
    """Write the images of all parts, in order, each with its id: the SHA-1 of its pixels and its occurrence so far.

    All parts are read once before anything is written, so that a malformed part is refused first.

    Returns:
        the number of images of each part, by source.
    """
    repeated = _repeated_prefixes(parts)
    seen: Counter[bytes] = Counter()
    counts: Counter[str] = Counter()
    with table.writer(path, dataset) as rows:
        for part in parts:
            for images, labels in part.read():
                digests = table.pixel_digests(images)
                occurrences = [0] * len(digests)
                for row in np.flatnonzero(np.isin(_prefixes(digests), repeated)):
                    occurrences[row] = seen[digests[row]]
                    seen[digests[row]] += 1
                ids = [f"{digest.hex()}-{number}" for digest, number in zip(digests, occurrences, strict=True)]
                rows.write(images, labels, table.strings(ids), table.strings([part.source] * len(ids)))
                counts[part.source] += len(ids)
    return dict(counts)


def _repeated_prefixes(parts: Sequence[Part]) -> np.ndarray:
    """Find the prefixes that occur more than once: uint64 [n]. Only images with these prefixes must be counted."""
    chunks = [_prefixes(table.pixel_digests(images)) for part in parts for images, _ in part.read()]
    prefixes, counts = np.unique(np.concatenate(chunks), return_counts=True)
    return prefixes[counts > 1]


def _prefixes(digests: Sequence[bytes]) -> np.ndarray:
    """Return the first eight bytes of each digest: uint64 [n]."""
    return np.frombuffer(b"".join(digest[:8] for digest in digests), np.uint64)


if __name__ == "__main__":
    execute("ingest", run)
