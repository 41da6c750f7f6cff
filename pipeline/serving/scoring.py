"""Batch scoring: predictions for any number of pictures, in a Parquet file.

The partitions of the input are scored in parallel, and each is written to `OUTPUT.parts/KEY/`. KEY is a digest of the
input and the model, so parts of different scorings never mix. The output is written from the parts in their order, and
renamed into place when it is complete. After a kill, the same command continues with the parts that are missing.
"""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, TrackingError
from pipeline.files import atomic_file
from pipeline.models.contract import CONTRACT_FILE, LITERT_FILE, read_contract
from pipeline.partitions import map_partitions
from pipeline.registry.load_version import CannotBeJudged, download_file, find_model
from pipeline.registry.registration import current_name, find_version, open_registry
from pipeline.serving.scoring_inputs import PICTURES, ScoringInput, open_input
from pipeline.serving.scoring_parts import ScoredBy, Task, load_model, read_part, schema_of, score_partition
from pipeline.serving.scoring_run import ScoringModel, Seen, record_scoring
from pipeline.tracking.logged_models import CONTRACT_TAG, EXPORTED_TAG
from pipeline.tracking.store import explained
from pipeline.workspace import lock

FORMAT = "1"  # of the parts; a change makes parts of other releases stale
SAMPLED = 2_048  # approximate number of images whose features are compared with those of the validation images
REPEATING = ["class", "version", "model", "error"]  # columns with few different values

Progress = Callable[[int], Callable[[int], None]]  # of the number of pictures; returns a function to advance


@dataclass(frozen=True)
class Options:
    """Options of a scoring."""

    version: str = "champion"  # a number or an alias, of the workspace's registered model; or NAME/VERSION
    workers: int | None = None  # processes; None: one for each processor
    restart: bool = False  # discard finished parts
    all_probabilities: bool = False  # also write the probability of every class


def score(workspace: Path, source: Path, output: Path, options: Options, progress: Progress) -> Seen:
    """Score an input, write the predictions to `output`, and record the scoring in MLflow.

    Raises:
        DataError: the input is unknown or damaged, or no picture could be read.
        TrackingError: the version does not exist, has no exported model, or the store cannot be used.
        WorkspaceError: another process scores to the same output.
    """
    if output.suffix.lower() != ".parquet":
        raise DataError(f"cannot write to {output}", expected="a name that ends with .parquet")
    if output.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{output} is inside the input", remedy="write the output to another folder")
    name = hashlib.sha256(str(output.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    with (
        lock(f"score {name}", wait=0, remedy="wait until it has ended", root=workspace),
        tempfile.TemporaryDirectory() as scratch,
    ):
        model = _fetch(workspace, options.version, Path(scratch))
        found = open_input(source, model.contract.shape)
        folder = _prepare_parts(output, found, model, options)
        with record_scoring(workspace, model, source, found) as seen:
            _score_parts(found, model, folder, output, seen, options, progress(found.rows))
        shutil.rmtree(folder.parent)
    return seen


def _fetch(workspace: Path, which: str, folder: Path) -> ScoringModel:
    """Download the exported model of a version, and check its digest."""
    name, _, number = which.rpartition("/")
    name = name or current_name(workspace)
    store, client = open_registry(workspace)
    with explained(store):
        version = find_version(client, name, number)
        number = str(version.version)
        if EXPORTED_TAG not in version.tags:
            raise TrackingError(f"{name} version {number} has no model.tflite", remedy=f"pipeline export {number}")
        try:
            model = find_model(client, version)
            for tag, file in ((CONTRACT_TAG, CONTRACT_FILE), (EXPORTED_TAG, LITERT_FILE)):
                shutil.move(download_file(store, model, version, tag, folder), folder / file)
        except CannotBeJudged as error:
            raise TrackingError(f"{name} version {number} cannot be loaded: {error.problem}") from None
    return ScoringModel(name, number, dict(version.tags), read_contract(folder / CONTRACT_FILE), folder)


def _prepare_parts(output: Path, found: ScoringInput, model: ScoringModel, options: Options) -> Path:
    """Create the folder for the parts, with the files of the model. Removes the parts of other scorings."""
    facts = [FORMAT, found.fingerprint, model.version, *(model.tags[tag] for tag in (CONTRACT_TAG, EXPORTED_TAG))]
    key = hashlib.sha256("\n".join([*facts, str(options.all_probabilities)]).encode()).hexdigest()[:32]
    parts = output.with_name(f"{output.name}.parts")
    folder = parts / key
    for other in parts.iterdir() if parts.is_dir() else ():
        if other != folder or options.restart:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONTRACT_FILE, LITERT_FILE):
        with atomic_file(folder / name) as partial:
            shutil.copyfile(model.folder / name, partial)
    return folder


def _score_parts(
    found: ScoringInput,
    model: ScoringModel,
    folder: Path,
    output: Path,
    seen: Seen,
    options: Options,
    advance: Callable[[int], None],
) -> None:
    """Score the missing parts, and write the output from all parts."""
    by = ScoredBy(folder, model.version, options.all_probabilities)
    stride = max(1, found.rows // SAMPLED)
    numbered = enumerate(found.partitions())
    tasks = (Task(partition, folder / f"{number:06}.arrow", by, stride) for number, partition in numbered)
    workers = 1 if found.rows <= PICTURES else options.workers
    about = {"name": model.name, "version": model.version, "sha256": model.contract.litert_sha256}
    metadata = {"scoring": json.dumps(about | {"classes": seen.classes}, ensure_ascii=False)}
    schema = schema_of(model.contract, all_probabilities=options.all_probabilities).with_metadata(metadata)
    load_model(folder)  # before the workers are forked: they need not load it
    start = time.perf_counter()
    with atomic_file(output) as partial:
        with pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=REPEATING) as writer:
            for rows, features in _read(map_partitions(score_partition, tasks, workers=workers)):
                writer.write_table(rows)
                seen.add(rows, features, stride)
                advance(len(rows))
        if seen.failed == seen.rows:
            shutil.rmtree(folder.parent)
            raise DataError(f"cannot read any of {seen.rows:,} pictures", found=seen.errors[0][1])
    seen.seconds = time.perf_counter() - start


def _read(parts: Iterator[Path]) -> Iterator[tuple[pa.Table, dict[str, list[float]]]]:
    for part in parts:
        try:
            yield read_part(part)
        except (pa.ArrowException, KeyError) as error:
            raise DataError(f"{part} is damaged", found=str(error), remedy="run the command with --restart") from None
