"""New classes in a dataset's catalogue entry."""

import shutil
from pathlib import Path

import pytest

from pipeline.batches.new_classes import append_classes
from pipeline.data.catalog import load_entry
from pipeline.errors import DataError, ParamsError
from tests.conftest import REPOSITORY


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "data/catalog", tmp_path / "catalog")
    return tmp_path / "catalog"


@pytest.mark.parametrize("name", ["tiny", "fashion-mnist"])
def test_a_new_class_is_one_more_line_after_the_others(catalog: Path, name: str) -> None:
    before, file = load_entry(name, catalog), catalog / f"{name}.yaml"
    new = append_classes(name, ["Hat=모자", "Sun glasses=선글라스"], 0.2, catalog)
    added = [line for line in new.content.decode().splitlines() if line not in file.read_text().splitlines()]
    assert [line.strip() for line in added] == [
        "- {en: Hat, ko: 모자, test_fraction: 0.2}",
        "- {en: Sun glasses, ko: 선글라스, test_fraction: 0.2}",
    ]
    assert load_entry(name, catalog) == before  # nothing is written yet
    new.write()
    entry = load_entry(name, catalog)
    assert entry.classes[:10] == before.classes
    assert entry.dataset.classes[10:] == ("Hat", "Sun glasses")
    assert entry.added_classes == {10: 0.2, 11: 0.2}
    original = (REPOSITORY / "data/catalog" / file.name).read_text()
    assert file.read_text().replace("\n".join(added) + "\n", "") == original


@pytest.mark.parametrize(
    "classes",
    [
        "classes: [Bolt, Nut]  # two\n",
        "classes:\n- Bolt\n- Nut  # the other\n",
        "classes:\n  - en: Bolt\n  - en: Nut\n# the end\n",
        "classes: [Bolt,\n  'Nut']",
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_every_way_to_write_the_classes_is_extended(catalog: Path, classes: str, order: int) -> None:
    others = (catalog / "tiny.yaml").read_text().split("classes:")[0]
    (catalog / "parts.yaml").write_text("\n".join([others, classes][::order]))
    append_classes("parts", ["Cog: small"], 0.15, catalog).write()
    entry = load_entry("parts", catalog)
    assert (entry.dataset.classes, entry.added_classes) == (("Bolt", "Nut", "Cog: small"), {2: 0.15})
    assert entry.classes_ko == ()
    assert (catalog / "parts.yaml").read_text().count("#") == others.count("#") + classes.count("#")
    append_classes("parts", ["Pin"], 0.3, catalog).write()
    assert load_entry("parts", catalog).added_classes == {2: 0.15, 3: 0.3}
    with pytest.raises(ParamsError, match="Pin=핀"):
        append_classes("parts", ["Pin=핀"], 0.3, catalog)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("Hat", "an English and a Korean name"),
        ("=모자", "cannot name a class"),
        ("ankle-boot=부츠", "is a class of tiny already"),
        ("Hat=가방", "가방 is a class of tiny already"),
    ],
)
def test_a_name_that_is_known_or_incomplete_is_refused(catalog: Path, written: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        append_classes("tiny", [written], 0.15, catalog)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_share_leaves_images_on_both_sides(catalog: Path, fraction: float) -> None:
    with pytest.raises(ParamsError, match="--test-fraction"):
        append_classes("tiny", ["Hat=모자"], fraction, catalog)


def test_an_entry_that_was_edited_meanwhile_is_not_overwritten(catalog: Path) -> None:
    new = append_classes("tiny", ["Hat=모자"], 0.15, catalog)
    edited = (catalog / "tiny.yaml").read_text().replace("flip: true", "flip: false")
    (catalog / "tiny.yaml").write_text(edited)
    with pytest.raises(DataError, match="changed while the batch was checked"):
        new.write()
    assert (catalog / "tiny.yaml").read_text() == edited
