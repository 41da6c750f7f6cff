"""`data/catalog.yaml`: the datasets the pipeline knows, and what is known about each."""

import difflib
from pathlib import Path
from typing import Annotated, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from pipeline.class_names import find_repeated
from pipeline.data.table import Dataset
from pipeline.errors import DataError, ParamsError, mend_committed
from pipeline.files import parse_yaml

CATALOG_FILE = Path("data/catalog.yaml")

record = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@record
class IdxFile:
    """One file of a dataset, as it is after decompression."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@record
class DebianPackage:
    """A Debian or Ubuntu package that ships the files."""

    package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]+$")]
    directory: Path


@record
class ClassName:
    """What one label stands for."""

    en: str
    ko: str


@record
class Entry:
    """What is known about a dataset before any of it has been fetched."""

    name: str
    title: str
    page: str
    licence: str
    height: Count
    width: Count
    train: Count
    test: Count
    mean: Share
    std: Share
    flip: bool
    classes: Annotated[tuple[ClassName, ...], Field(min_length=2, max_length=256)]
    limits: tuple[str, ...] = ()  # what is published of its faults, a sentence each, for the model card
    generated: bool = False  # by pipeline.data.tiny: nothing to fetch
    files: tuple[IdxFile, ...] = ()  # training images and labels, test images and labels
    mirrors: tuple[str, ...] = ()
    debian: DebianPackage | None = None

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        image = self.height * self.width
        sizes = [16 + self.train * image, 8 + self.train, 16 + self.test * image, 8 + self.test]  # a header, the values
        expected = [] if self.generated else sizes
        if [file.bytes for file in self.files] != expected:
            raise ValueError(f"files: the counts and the shape make files of {expected} bytes, in this order")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if repeated := find_repeated([name.en for name in self.classes], [name.ko for name in self.classes]):
            raise ValueError(f"classes: {repeated!r} names more than one class")
        return self

    @property
    def dataset(self) -> Dataset:
        """The facts that travel with the images."""
        return Dataset(
            name=self.name,
            height=self.height,
            width=self.width,
            classes=tuple(name.en for name in self.classes),
            classes_ko=tuple(name.ko for name in self.classes),
            flip=self.flip,
        )


def load_entry(name: str, path: Path = CATALOG_FILE) -> Entry:
    """The catalogue's entry for `dataset.name`.

    Raises:
        ParamsError: the catalogue has no such entry.
        DataError: the catalogue is missing or malformed.
    """
    entries = load_catalog(path)
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=1)
        raise ParamsError(
            f"dataset.name is {name!r}, which {path} does not have",
            expected=f"one of {', '.join(entries)}",
            found=f"{name!r}; did you mean {close[0]}?" if close else repr(name),
            remedy=f"correct dataset.name in params.yaml, or add an entry to {path}",
        )
    return entries[name]


def load_catalog(path: Path = CATALOG_FILE) -> dict[str, Entry]:
    """Every entry, by name.

    Raises:
        DataError: the file is missing, is not YAML, or has unknown or missing keys.
    """
    try:
        raw = parse_yaml(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing", remedy=mend_committed(path)) from None
    except ValueError as error:
        raise DataError(f"{path} is not YAML", found=str(error), remedy=mend_committed(path)) from None
    if not isinstance(raw, dict) or not all(isinstance(facts, dict) for facts in raw.values()):
        raise DataError(f"{path} is not a catalogue", expected="a mapping from dataset names to facts")
    named = {name: {"name": name, **facts} for name, facts in raw.items()}
    try:
        return TypeAdapter(dict[str, Entry]).validate_python(named)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        raise DataError(f"{path} is malformed", found="; ".join(problems), remedy=f"mend {path}") from None
