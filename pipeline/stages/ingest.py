"""Fetch the images, check them, add the team's batches, and store all of it as Parquet."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data import added_classes, idx, own_files, table, window
from pipeline.data.applied_corrections import write_applied
from pipeline.data.batch_formats import Pair, read_batch
from pipeline.data.batches import INCOMING, find_batches, read_state, require_unchanged
from pipeline.data.catalog import CATALOG, Entry, load_catalog, load_entry
from pipeline.data.corrections import CORRECTIONS, Corrections, read_corrections
from pipeline.data.dataset_files import Fetched, fetch, write_checksums
from pipeline.data.removed_images import Removed, write_removed
from pipeline.data.table import Dataset
from pipeline.files import atomic_directory, file_digest
from pipeline.params import Params
from pipeline.redaction import printable
from pipeline.stages.entrypoint import execute

RAW = Path("data/raw")
DATASET = Path("data/dataset")
SHOWN_SOURCES = 4


# Images uint8 [n, *shape], their labels as given, integers [n], and their groups, string [n], or None.
Chunk = tuple[np.ndarray, np.ndarray, pa.Array | None]


@dataclass(frozen=True)
class Part:
    """Images from one source, which can be read repeatedly, in chunks."""

    source: str  # `official`, or a batch's name
    read: Callable[[], Iterator[Chunk]]


def run(params: Params) -> None:
    """Write `data/raw/` and `data/dataset/`. If anything fails, neither is written."""
    entry = load_entry(params.dataset.name)
    batches, before = find_batches(INCOMING), read_state(INCOMING)
    with atomic_directory(RAW) as raw, atomic_directory(DATASET) as tables:
        dataset, origin, train, test = _open_dataset(entry, Path(params.dataset.path), raw)
        print(f"{entry.title} ({entry.licence}) as {dataset.name}: {origin}", flush=True)
        added = [Part(path.name, _without_groups(partial(read_batch, path, dataset))) for path in batches]
        added, added_test = _carve_test(added, entry.added_classes)
        newest, share = params.dataset.window, params.dataset.window_older
        kept = [train, *added] if newest is None else _apply_window(train, added, newest, share, len(dataset.classes))
        corrections = read_corrections(CORRECTIONS, dataset)
        removed: list[Removed] = []
        for split, parts in (("train", kept), ("test", [test, *added_test])):
            counts, of_split = write_table(tables / f"{split}.parquet", dataset, parts, corrections)
            images = f"{sum(counts.values()):,} images of {len(dataset.classes)} classes"
            print(f"{split}: {images} ({_describe(counts)})", flush=True)
            removed += of_split
        added_classes.require_images(tables / "train.parquet", tables / "test.parquet", entry.added_classes)
        if corrected := corrections.require_found(windowed=newest is not None):
            print(corrected, flush=True)
        write_removed(tables, removed)
        write_applied(tables, corrections.list_applied())
        # DVC hashes the folder after this stage. It would record a batch that arrived meanwhile as already read.
        require_unchanged(INCOMING, before)


def _open_dataset(entry: Entry, path: Path, raw: Path) -> tuple[Dataset, str, Part, Part]:
    """Return the dataset, the origin of its files, and its training and test images. Writes `data/raw/`."""
    if entry.own:
        files = own_files.find(entry, path)
        write_checksums(raw, {file.name: file.sha256 for file in entry.files})
        train, test = (Part(table.OFFICIAL, partial(own_files.stream, file, entry.dataset)) for file in files)
        return entry.dataset, f"imported data in {path}", train, test
    fetched = fetch(entry, path, raw)
    if fetched.dataset.name != entry.name:
        print(_describe_local_files(entry, fetched), flush=True)
    train, test = (
        Part(table.OFFICIAL, _without_groups(partial(idx.stream_pair, images, labels, fetched.dataset)))
        for images, labels in (fetched.train, fetched.test)
    )
    return fetched.dataset, fetched.origin, train, test


def _without_groups(read: Callable[[], Iterator[Pair]]) -> Callable[[], Iterator[Chunk]]:
    return lambda: ((images, labels, None) for images, labels in read())


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
    thresholds = window.find_thresholds(((images, labels) for images, labels, _ in own.read()), classes, share)
    is_kept = partial(window.choose, thresholds=thresholds)
    older = [_select(part, is_kept) for part in [own, *batches[:-newest]]]
    return [*older, *batches[-newest:]]


def _carve_test(batches: Sequence[Part], fractions: Mapping[int, float]) -> tuple[list[Part], list[Part]]:
    """Divide batches into training images and test images. Only classes that batches added have test images."""
    if not fractions:
        return list(batches), []
    is_test = partial(added_classes.choose_test, fractions=fractions)
    train = [_select(part, lambda images, labels: ~is_test(images, labels)) for part in batches]
    return train, [_select(part, is_test) for part in batches]


def _select(part: Part, choose: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Part:
    """Return a part of the images of a source. `choose` converts images and labels to bool [n]."""

    def read() -> Iterator[Chunk]:
        for images, labels, groups in part.read():
            chosen = choose(images, labels)
            if chosen.any():
                yield images[chosen], labels[chosen], groups if groups is None else table.filter_rows(groups, chosen)

    return Part(part.source, read)


def _describe(counts: Mapping[str, int]) -> str:
    """Describe the sources of images in one line."""
    shown = [f"{count:,} {source}" for source, count in list(counts.items())[:SHOWN_SOURCES]]
    rest = list(counts.values())[SHOWN_SOURCES:]
    return printable(", ".join([*shown, f"{sum(rest):,} from {len(rest)} more batches"] if rest else shown))


def write_table(
    path: Path, dataset: Dataset, parts: Sequence[Part], corrections: Corrections
) -> tuple[dict[str, int], list[Removed]]:
    """Write the images of all parts, in order, each with its id: the SHA-1 of its pixels and its occurrence so far.

    All parts are read once before anything is written, so that a malformed part is refused first. In a grouped dataset,
    an image of a batch has the group of its first copy. Without one, it is a group of its own.

    Returns:
        the number of images of each part, by source, and the images that a correction removed.
    """
    repeated = _repeated_prefixes(parts)
    seen: Counter[bytes] = Counter()
    group_of: dict[bytes, str] = {}  # by SHA-1, of the first of several copies
    counts: Counter[str] = Counter()
    removed: list[Removed] = []
    with table.writer(path, dataset) as rows:
        for part in parts:
            first_row = 0
            for images, given, grouped in part.read():
                digests = table.pixel_digests(images)
                occurrences = [0] * len(digests)
                groups = [digest.hex() for digest in digests] if grouped is None else grouped.to_pylist()
                for row in np.flatnonzero(np.isin(_prefixes(digests), repeated)):
                    digest = digests[row]
                    occurrences[row] = seen[digest]
                    seen[digest] += 1
                    first = group_of.setdefault(digest, groups[row])
                    if grouped is None:
                        groups[row] = first
                ids = [f"{digest.hex()}-{number}" for digest, number in zip(digests, occurrences, strict=True)]
                labels, kept = corrections.apply(path.stem, ids, given)
                columns = [ids, [part.source] * len(ids), *([groups] if dataset.grouped else [])]
                texts = [table.strings(column) for column in columns]
                if not kept.all():
                    for row in np.flatnonzero(~kept):
                        group = groups[row] if dataset.grouped else ""
                        position = first_row + int(row)
                        removed.append(Removed(path.stem, ids[row], int(given[row]), part.source, group, position))
                    images, labels, given = images[kept], labels[kept], given[kept]
                    texts = [table.filter_rows(text, kept) for text in texts]
                rows.write(images, labels, texts[0], texts[1], given, *texts[2:])
                counts[part.source] += len(labels)
                first_row += len(digests)
    return dict(counts), removed


def _repeated_prefixes(parts: Sequence[Part]) -> np.ndarray:
    """Find the prefixes that occur more than once: uint64 [n]. Only images with these prefixes must be counted."""
    chunks = [_prefixes(table.pixel_digests(images)) for part in parts for images, *_ in part.read()]
    prefixes, counts = np.unique(np.concatenate(chunks), return_counts=True)
    return prefixes[counts > 1]


def _prefixes(digests: Sequence[bytes]) -> np.ndarray:
    """Return the first eight bytes of each digest: uint64 [n]."""
    return np.frombuffer(b"".join(digest[:8] for digest in digests), np.uint64)


if __name__ == "__main__":
    execute("ingest", run)
