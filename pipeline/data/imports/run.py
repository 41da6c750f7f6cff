"""Import a collection: survey it, write it, add it to DVC and the catalogue, and select it in `params.yaml`.

All files are created in a temporary directory and moved to their place. Then the directory is added to DVC, the entry
to the catalogue, and `params.yaml` is changed last. If an import is killed, the same command completes it.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.data.catalog import CATALOG, Entry
from pipeline.data.imports.survey import Options, Survey, survey
from pipeline.data.imports.write import About, create_dataset, create_entry, write_entry, write_tables
from pipeline.data.own_files import OWN
from pipeline.data.table import Dataset
from pipeline.data.training_suggestion import Suggestion, suggest_training
from pipeline.dvc import add
from pipeline.errors import DataError
from pipeline.files import atomic_file, parse_yaml, remove_abandoned, replace_yaml_values
from pipeline.params import PARAMS_FILE

Progress = Callable[[str, int], Callable[[int], None]]
NAME = r"[a-z0-9][a-z0-9_.-]{0,62}"
RESERVED = ("-local-", "-is-")  # parts of the names of registered models


@dataclass(frozen=True)
class Imported:
    """A dataset that is ready to train on."""

    dataset: Dataset
    suggestion: Suggestion
    changed: tuple[Path, ...]  # files to commit to git


def require_name(name: str) -> None:
    """Refuse an invalid name, and the name of a dataset that was not imported.

    Raises:
        DataError: describes the names that are allowed.
    """
    if not re.fullmatch(NAME, name) or any(part in name for part in RESERVED):
        raise DataError(
            f"{name!r} cannot be the name of a dataset",
            expected=f"lower-case letters, digits, `-`, `_` and `.`, without {' and '.join(map(repr, RESERVED))}",
            remedy="choose another name with --name",
        )
    existing = CATALOG / f"{name}.yaml"
    if existing.exists() and not _is_own(existing):
        raise DataError(
            f"cannot import {name}: it is a dataset of the catalogue that was not imported",
            expected="an unused name",
            found=str(existing),
            remedy="choose another name with --name",
        )


def _is_own(entry: Path) -> bool:
    facts = parse_yaml(entry.read_bytes())
    return isinstance(facts, dict) and bool(_digests(facts))


def _digests(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of an own dataset's files by name. Empty for other entries."""
    files = facts.get("files") or []
    return {file["name"]: file["sha256"] for file in files if str(file.get("name", "")).endswith(".parquet")}


@contextmanager
def surveyed(path: Path, name: str, options: Options, progress: Progress) -> Iterator[tuple[Survey, Path]]:
    """Survey a collection. Its decoded pixels are in a temporary directory until the block ends.

    Yields:
        the survey and the temporary directory.
    """
    scratch = OWN / f".{name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield survey(path, options, scratch, progress), scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for directory in (OWN, OWN.parent):  # if the import created them and left them empty
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()


def import_survey(
    found: Survey, scratch: Path, about: About, progress: Progress, *, replace: bool, set_training: bool
) -> Imported:
    """Write a surveyed collection as a dataset, and select it in `params.yaml`.

    Args:
        replace: replace an imported dataset of this name, even if its content differs.
        set_training: also set the suggested keys of `train` in `params.yaml`.

    Raises:
        DataError: a dataset of this name has other content, or a class name is invalid.
        FlowError: DVC failed.
    """
    dataset = create_dataset(found, about)
    folder = scratch / about.name
    folder.mkdir()
    moments = write_tables(found, dataset, folder, progress("writing", int(found.is_kept.sum())))
    facts = create_entry(found, dataset, about, folder, moments)
    _require_entry(facts, about.name)
    entry, target = CATALOG / f"{about.name}.yaml", OWN / about.name
    if entry.exists() and not replace and _digests(parse_yaml(entry.read_bytes())) != _digests(facts):
        raise DataError(
            f"the dataset {about.name} exists already, with other content",
            expected="an unused name",
            found=str(entry),
            remedy="choose another name with --name, or replace the dataset with --replace",
        )
    if target.exists():
        shutil.rmtree(target)
    os.replace(folder, target)
    remove_abandoned(target.parent, "*")
    add(target, remedy="fix the cause, and run the same command again")
    write_entry(entry, facts)
    suggestion = suggest_training(dataset, found.count(test=False).tolist())
    values = {"dataset.name": about.name, "dataset.path": str(target)}
    if set_training:
        values |= {f"train.{key}": value for key, value in suggestion.train.items()}
    text = replace_yaml_values(PARAMS_FILE.read_text(encoding="utf-8"), values)
    with atomic_file(PARAMS_FILE) as partial:
        partial.write_text(text, encoding="utf-8")
    pointer, ignored = target.with_name(f"{target.name}.dvc"), target.parent / ".gitignore"
    changed = (pointer, *([ignored] if ignored.exists() else []), entry, PARAMS_FILE)  # DVC may not need a .gitignore
    return Imported(dataset, suggestion, changed)


def _require_entry(facts: Mapping[str, Any], name: str) -> None:
    try:
        TypeAdapter(Entry).validate_python({**facts, "name": name})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        raise DataError(
            f"cannot write the catalogue entry of {name}",
            expected="a valid entry",
            found="; ".join(problems),
            remedy="rename the classes, or name them with --classes",
        ) from None
