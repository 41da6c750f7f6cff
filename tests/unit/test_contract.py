"""The contract of a model: written and read again, and refused when it is damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ModelError
from pipeline.models.contract import Contract, ContractTask, ExportCheck, read_contract, write_contract

CONTRACT = Contract(
    dataset="tiny",
    classes=("cat", "dog", "하마"),
    classes_ko=("고양이", "개", "하마"),
    height=28,
    width=20,
    ground=0,
    task=ContractTask(loss="sparse_categorical_crossentropy", units=3, positive_classes=()),
    keras_sha256="a" * 64,
    litert_sha256="b" * 64,
    check=ExportCheck(images=100, largest_difference=2e-7, other_top_class=0),
)


def test_a_contract_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    write_contract(path, CONTRACT)
    before = path.read_bytes()
    assert read_contract(path) == CONTRACT
    write_contract(path, read_contract(path))
    assert path.read_bytes() == before
    assert json.loads(before).keys() >= {"classes", "height", "width", "channels", "colour_order", "ground", "resizing"}


def test_a_contract_knows_the_task_without_any_parameters() -> None:
    task = CONTRACT.create_task()
    assert (task.classes, task.units, task.binary) == (("cat", "dog", "하마"), 3, False)
    binary = ContractTask(loss="binary_crossentropy", units=1, positive_classes=("dog", "하마"))
    task = replace(CONTRACT, task=binary).create_task()
    assert (task.classes, task.positive, task.units) == (("other", "dog or 하마"), (1, 2), 1)


def test_a_missing_or_damaged_contract_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    with pytest.raises(ModelError, match=r"(?s)contract.json is missing.*dvc repro train"):
        read_contract(path)
    write_contract(path, CONTRACT)
    text = path.read_text()
    damaged = [
        "",
        text[:-20],
        "[]",
        text.replace('"height": 28', '"height": 0'),
        text.replace('"a' + "a" * 63, '"A' + "a" * 63),
        text.replace('"grey"', '"rgb"'),
        text.replace('"positive_classes": []', '"positive_classes": ["dog"]'),
        text.replace('"dataset"', '"unknown": 1, "dataset"'),
    ]
    for content in damaged:
        assert content != text
        path.write_text(content)
        with pytest.raises(ModelError, match=r"(?s)contract.json is damaged.*dvc checkout"):
            read_contract(path)
