"""The catalogue of datasets."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.data.catalog import load_catalog, load_entry
from pipeline.errors import DataError, ParamsError
from tests.conftest import REPOSITORY

CATALOG = REPOSITORY / "data/catalog"


@pytest.fixture
def mnist() -> dict[str, Any]:
    return yaml.safe_load((CATALOG / "mnist.yaml").read_text(encoding="utf-8"))


def write(directory: Path, name: str, facts: dict[str, Any]) -> Path:
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(facts, allow_unicode=True), encoding="utf-8")
    return directory


def test_the_datasets_are_what_is_published_of_them() -> None:
    entries = load_catalog(CATALOG)
    fashion, mnist = entries["fashion-mnist"], entries["mnist"]
    assert (fashion.train, fashion.test, fashion.licence, fashion.flip) == (60000, 10000, "MIT", True)
    assert (mnist.train, mnist.test, mnist.licence, mnist.flip) == (60000, 10000, "CC BY-SA 3.0", False)
    assert fashion.dataset.classes[9] == "Ankle boot"
    assert fashion.dataset.classes_ko[9] == "발목 부츠"
    assert mnist.dataset.classes == tuple("0123456789")
    assert [file.name.split("-")[:2] for file in fashion.files] == [
        ["train", "images"],
        ["train", "labels"],
        ["t10k", "images"],
        ["t10k", "labels"],
    ]
    for entry in (fashion, mnist, entries["tiny"]):
        assert entry.dataset.name == entry.name
        assert len(set(entry.dataset.classes)) == len(set(entry.dataset.classes_ko)) == 10


def test_tiny_has_the_classes_of_fashion_mnist_and_nothing_to_fetch() -> None:
    tiny = load_entry("tiny", CATALOG)
    assert tiny.classes == load_entry("fashion-mnist", CATALOG).classes
    assert tiny.generated
    assert tiny.files == tiny.mirrors == ()


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(ParamsError, match=r"(?s)expected: one of fashion-mnist, .*tiny.*\n.*did you mean mnist\?"):
        load_entry("minst", CATALOG)


def test_another_dataset_is_another_file(tmp_path: Path, mnist: dict[str, Any]) -> None:
    write(tmp_path, "mnist", mnist)
    write(tmp_path, "kmnist", {**mnist, "title": "Kuzushiji"})
    (tmp_path / "notes.txt").touch()
    assert list(load_catalog(tmp_path)) == ["kmnist", "mnist"]
    assert load_entry("kmnist", tmp_path).title == "Kuzushiji"


def own_facts(**changes: Any) -> dict[str, Any]:
    """Facts as `pipeline data import` writes them."""
    files = [{"name": f"{split}.parquet", "bytes": 1000, "sha256": "0" * 64} for split in ("train", "test")]
    counts = {"train": 90, "test": 10, "mean": 0.5, "std": 0.2}
    shape = {"height": 32, "width": 48, "channels": 3, "grouped": True}
    return {"title": "Parts", **shape, **counts, "flip": True, "classes": ["bolt", "nut"], "files": files, **changes}


def test_own_data_has_colours_groups_and_names_in_one_language(tmp_path: Path) -> None:
    entry = load_entry("parts", write(tmp_path, "parts", own_facts()))
    assert entry.own
    dataset = entry.dataset
    assert (dataset.shape, dataset.grouped) == ((32, 48, 3), True)
    assert (dataset.classes, dataset.classes_ko) == (("bolt", "nut"), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mirrors": ["https://example.invalid/"]}, "imported data has no mirrors"),
        ({"files": []}, "colour and groups need imported data"),
        ({"channels": 4}, "channels: "),
        ({"height": 513}, "height: "),
        ({"classes": [{"en": "bolt", "ko": "볼트"}, "nut"]}, "some have a Korean name and some do not"),
        ({"classes": ["bolt", "bolt"]}, "'bolt' names more than one class"),
        ({"classes": ["bolt"]}, "classes: "),
    ],
)
def test_malformed_own_data_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"parts.yaml is malformed\n.*{message}"):
        load_catalog(write(tmp_path, "parts", own_facts(**change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licens": "MIT"}, "licens: "),
        ({"mean": 1.5}, "mean: "),
        ({"train": 50000}, "files of .39200016, 50008, 7840016, 10008. bytes"),
        ({"files": []}, "make files of .47040016, 60008, 7840016, 10008. bytes"),
        ({"generated": True}, "make files of .. bytes"),
        ({"mirrors": "https://example.invalid/"}, "mirrors: "),
        ({"debian": {"package": "Not A Name", "directory": "/usr"}}, "debian.package: "),
        ({"classes": [{"ko": "영"}, "1"]}, "classes.0.en: "),
        ({"classes": [{"en": "a", "ko": "가"}, {"en": "a", "ko": "나"}]}, "'a' names more than one class"),
        ({"classes": [{"en": "a", "ko": "가"}, {"en": "b", "ko": "가"}]}, "'가' names more than one class"),
        ({"classes": [{"en": "a", "ko": "b"}, {"en": "b", "ko": "나"}]}, "'b' names more than one class"),
    ],
)
def test_a_malformed_entry_is_refused_by_key(
    tmp_path: Path, mnist: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    write(tmp_path, "mnist", mnist | change)
    with pytest.raises(DataError, match=f"mnist.yaml is malformed\n.*{message}"):
        load_catalog(tmp_path)


def test_names_that_differ_in_case_or_punctuation_are_two_classes(tmp_path: Path, mnist: dict[str, Any]) -> None:
    names = ("M1.5", "M15", "C", "C++", "a", "A", "a-b", "a b")
    facts = {**mnist, "classes": [{"en": name, "ko": name} for name in names]}
    assert load_entry("parts", write(tmp_path, "parts", facts)).dataset.classes == names


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "is not YAML"), ("[1, 2]", "is not an entry"), ("", "is not an entry")]
)
def test_what_is_no_entry_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "parts.yaml").write_text(content)
    with pytest.raises(DataError, match=f"parts.yaml {message}"):
        load_catalog(tmp_path)


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"catalog is missing"):
        load_catalog(tmp_path / "catalog")
