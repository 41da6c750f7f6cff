"""New classes of a dataset: `pipeline add-data --new-class` appends them to its catalogue entry."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.catalog import CATALOG, Entry, load_entry, parse_entry
from pipeline.errors import DataError, ParamsError
from pipeline.files import atomic_file, compose_yaml, format_yaml, parse_yaml
from pipeline.image_class_names import find_class

TEST_FRACTION = 0.15  # as of an import


@dataclass(frozen=True)
class NewClasses:
    """The entry of a dataset with new classes, before it is written."""

    entry: Entry
    file: Path  # of the entry
    before: bytes  # the file's content now
    content: bytes  # the file's new content
    names: tuple[str, ...]  # of the new classes

    def require_images(self, counts: Mapping[str, int], source: Path) -> None:
        """Refuse a batch without images of a new class. counts: images of the batch by class name.

        Raises:
            DataError: names the class.
        """
        for name in self.names:
            if not counts[name]:
                raise DataError(
                    f"{source} has no images of the new class {name}",
                    expected="images of each new class",
                    remedy=f"leave out --new-class {shlex.quote(name)}, or add a folder {name}",
                )

    def write(self) -> None:
        """Write the entry's file.

        Raises:
            DataError: it was edited meanwhile.
        """
        if self.file.read_bytes() != self.before:
            raise DataError(f"{self.file} changed while the batch was checked", remedy="run the same command again")
        with atomic_file(self.file) as partial:
            partial.write_bytes(self.content)


def append_classes(dataset: str, written: Sequence[str], test_fraction: float, directory: Path = CATALOG) -> NewClasses:
    """Return the entry of a dataset with new classes after its others, whose labels stay. Writes nothing.

    Args:
        dataset: `dataset.name`.
        written: the names: `Hat`, or `Hat=모자` if the dataset has Korean names.
        test_fraction: the share of their images that are test images, between 0 and 1.

    Raises:
        ParamsError: a name is empty or known already, or its Korean name is missing or superfluous.
        DataError: the entry cannot be extended.
    """
    entry, file = load_entry(dataset, directory), directory / f"{dataset}.yaml"
    if not 0 < test_fraction < 1:
        raise ParamsError(f"--test-fraction is {test_fraction:g}", expected="between 0 and 1, such as 0.15")
    classes: list[dict[str, Any]] = []
    for one in written:
        name, equals, korean = (part.strip() for part in one.partition("="))
        _require_new(name, korean, entry, one)
        classes.append({"en": name, **({"ko": korean} if equals else {}), "test_fraction": test_fraction})
    before = file.read_bytes()
    content = _append(file, before.decode(), classes).encode()
    return NewClasses(parse_entry(file, content), file, before, content, tuple(item["en"] for item in classes))


def _require_new(name: str, korean: str, entry: Entry, written: str) -> None:
    known = [class_name.en for class_name in entry.classes]
    if not name or bool(korean) != bool(entry.classes_ko) or ("=" in written) != bool(entry.classes_ko):
        example = "Hat=모자" if entry.classes_ko else "Hat"
        form = "an English and a Korean name" if entry.classes_ko else "one name"
        raise ParamsError(
            f"--new-class {written!r} cannot name a class of {entry.name}",
            expected=f"{form}, as the other classes have: --new-class {example}",
        )
    for one in (name, korean):
        if one and (labels := find_class(one, known, entry.classes_ko)):
            raise ParamsError(
                f"{one} is a class of {entry.name} already",
                expected="the name of a new class",
                found=", ".join(f"{label} {known[label]}" for label in sorted(labels)),
                remedy="leave out --new-class",
            )


def _append(file: Path, text: str, classes: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of an entry with more classes. Comments, order and layout stay."""
    root = compose_yaml(text)
    listed = next(value for key, value in root.value if key.value == "classes")
    written = [format_yaml(one, on_one_line=True).strip() for one in classes]
    end = _end(listed)
    if listed.flow_style:
        extended = "".join([text[:end], *(f", {one}" for one in written), text[end:]])
    else:
        line_end = text.find("\n", end)
        line_end = len(text) if line_end < 0 else line_end
        dash = " " * listed.start_mark.column + "- "
        extended = text[:line_end] + "".join(f"\n{dash}{one}" for one in written) + text[line_end:]
    before = parse_yaml(text)
    try:
        is_extended = parse_yaml(extended) == {**before, "classes": [*before["classes"], *classes]}
    except ValueError:
        is_extended = False
    if not is_extended:
        raise DataError(
            f"cannot add classes to {file}",
            expected="a list of classes, one a line",
            remedy=f"add these lines to its classes, and repeat the command without --new-class: {'; '.join(written)}",
        )
    return extended


def _end(node: Any) -> int:
    """Return the position after the last value in a list. The end of a block also contains comments."""
    last = node
    while isinstance(last.value, list) and last.value:
        if last is not node and last.flow_style:
            break
        last = last.value[-1][1] if isinstance(last.value[-1], tuple) else last.value[-1]
    return int(last.end_mark.index)
