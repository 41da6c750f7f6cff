"""The catalogue of datasets."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.data.catalog import load_catalog, load_entry
from pipeline.errors import DataError, ParamsError
from tests.conftest import REPOSITORY

CATALOG = REPOSITORY / "data/catalog.yaml"


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load(CATALOG.read_text(encoding="utf-8"))


def write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


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
    with pytest.raises(ParamsError, match=r"(?s)expected: one of fashion-mnist, mnist, tiny.*\n.*did you mean mnist\?"):
        load_entry("minst", CATALOG)


def test_another_dataset_is_another_entry(tmp_path: Path, raw: dict[str, Any]) -> None:
    facts = {**raw["mnist"], "title": "Kuzushiji"}
    path = write(tmp_path / "catalog.yaml", {**raw, "kmnist": facts})
    assert load_entry("kmnist", path).title == "Kuzushiji"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licens": "MIT"}, "mnist.licens: "),
        ({"mean": 1.5}, "mnist.mean: "),
        ({"train": 50000}, "files of .39200016, 50008, 7840016, 10008. bytes"),
        ({"files": []}, "make files of .47040016, 60008, 7840016, 10008. bytes"),
        ({"generated": True}, "make files of .. bytes"),
        ({"mirrors": "https://example.invalid/"}, "mnist.mirrors: "),
        ({"debian": {"package": "Not A Name", "directory": "/usr"}}, "mnist.debian.package: "),
        ({"classes": [{"en": "0"}]}, "mnist.classes.0.ko: "),
        ({"classes": [{"en": "a", "ko": "가"}, {"en": "a", "ko": "나"}]}, "'a' names more than one class"),
        ({"classes": [{"en": "a", "ko": "가"}, {"en": "b", "ko": "가"}]}, "'가' names more than one class"),
        ({"classes": [{"en": "a", "ko": "b"}, {"en": "b", "ko": "나"}]}, "'b' names more than one class"),
    ],
)
def test_a_malformed_entry_is_refused_by_key(
    tmp_path: Path, raw: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "catalog.yaml", {"mnist": raw["mnist"] | change})
    with pytest.raises(DataError, match=f"catalog.yaml is malformed\n.*{message}"):
        load_catalog(path)


def test_names_that_differ_in_case_or_punctuation_are_two_classes(tmp_path: Path, raw: dict[str, Any]) -> None:
    names = ("M1.5", "M15", "C", "C++", "a", "A", "a-b", "a b")
    facts = {**raw["mnist"], "classes": [{"en": name, "ko": name} for name in names]}
    assert load_entry("parts", write(tmp_path / "catalog.yaml", {"parts": facts})).dataset.classes == names


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "is not YAML"), ("[1, 2]", "is not a catalogue"), ("a: 1", "is not a catalogue")]
)
def test_what_is_no_catalogue_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "catalog.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        load_catalog(tmp_path / "catalog.yaml")


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"catalog\.yaml is missing"):
        load_catalog(tmp_path / "catalog.yaml")
