"""`params.yaml`: what is refused, and whether the message helps."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import dumps_yaml

from pipeline.errors import ParamsError
from pipeline.params import (
    PARAMS_FILE,
    Params,
    Section,
    TrainSettings,
    _has_defaults,
    _room_sections,
    load_params,
    params_schema,
    parse_params,
)
from tests.conftest import REPOSITORY


@pytest.fixture
def raw() -> dict[str, Any]:
    content = yaml.safe_load((REPOSITORY / PARAMS_FILE).read_text())
    content["train"] |= dict.fromkeys(field.name for field in dataclasses.fields(TrainSettings))  # a copy may set some
    return content


def changed(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *sections, last = key.split(".")
    result = copy.deepcopy(raw)
    target = result
    for section in sections:
        target = target[section]
    target[last] = value
    return result


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epochs", -1, "train.epochs is -1: input should be greater than 0"),
        ("train.epochs", True, "train.epochs is True"),
        ("train.flip", 1, "train.flip is 1"),
        ("split.validation_fraction", True, "split.validation_fraction is True"),
        ("train.epoch", 3, "train.epoch is not a parameter; did you mean epochs?"),
        ("trane", {}, "trane is not a parameter; did you mean train?"),
        ("conservatory", {}, "conservatory is not a parameter. No part of this project reads this section: delete it"),
        ("train.preset", "mpl", "train.preset is 'mpl', not one of mlp, cnn"),
        ("train.loss", "mse", "train.loss is 'mse'"),
        ("presets.cnn.epochs", 0, "presets.cnn.epochs is 0"),
        ("presets.cnn.epochz", 1, "presets.cnn.epochz is not a parameter; did you mean epochs?"),
        ("split.validation_fraction", 1.0, "split.validation_fraction is 1.0: input should be less than 1"),
        ("split.validation_fraction", "half", "split.validation_fraction is 'half'"),
        ("split", None, "split is None"),
        ("dataset.path", "", "dataset.path"),
        ("dataset.window", 0, "dataset.window is 0: input should be greater than 0"),
        ("dataset.window_older", 0.0, "dataset.window_older is 0.0: input should be greater than 0"),
        ("evaluate.min_accuracy", 1.2, "evaluate.min_accuracy is 1.2"),
        ("evaluate.max_loss", float("inf"), "evaluate.max_loss is inf: input should be a finite number"),
        ("presets.mlp.weight_decay", float("nan"), "presets.mlp.weight_decay is nan: input should be a finite number"),
    ],
)
def test_bad_values_are_named(raw: dict[str, Any], key: str, value: Any, message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse_params(changed(raw, key, value))
    assert message in str(caught.value)
    assert "pipeline schema" in caught.value.remedy


@pytest.mark.parametrize("key", ["train.seed", "train.epochs", "split.seed", "dataset.name", "evaluate.min_accuracy"])
def test_a_missing_key_is_named(raw: dict[str, Any], key: str) -> None:
    section, last = key.split(".")
    del raw[section][last]
    with pytest.raises(ParamsError, match=f"{section}.{last} is missing"):
        parse_params(raw)


def test_a_file_from_before_a_room_gets_the_defaults_of_its_section(raw: dict[str, Any]) -> None:
    optional = {key for key, kind in _room_sections().items() if _has_defaults(kind)}
    given, without = parse_params(raw), parse_params({key: raw[key] for key in raw.keys() - optional})
    for key in optional:
        defaults = {
            name: value for name, value in vars(getattr(without, key)).items() if not isinstance(value, Mapping)
        }
        assert vars(getattr(given, key)).items() >= defaults.items()


def test_all_problems_are_told_at_once(raw: dict[str, Any]) -> None:
    bad = changed(changed(raw, "train.epochs", -1), "split.seed", "x")
    with pytest.raises(ParamsError) as caught:
        parse_params(bad)
    assert "train.epochs" in str(caught.value)
    assert "split.seed" in str(caught.value)


def test_overrides_win_over_the_preset(raw: dict[str, Any]) -> None:
    preset = parse_params(raw).train.settings
    assert preset.epochs == raw["presets"]["mlp"]["epochs"]
    settings = parse_params(changed(raw, "train.epochs", 2)).train.settings
    assert settings.epochs == 2
    assert settings.batch_size == preset.batch_size


def test_each_preset_of_the_file_can_be_chosen(raw: dict[str, Any]) -> None:
    for preset in raw["presets"]:
        assert parse_params(changed(raw, "train.preset", preset)).train.settings.network


@pytest.mark.parametrize(
    ("loss", "positive", "message"),
    [
        ("binary_crossentropy", [], "positive_classes is empty"),
        ("sparse_categorical_crossentropy", ["Sandal"], "set train.loss to binary_crossentropy"),
        ("categorical_crossentropy", [5], "set train.loss to binary_crossentropy"),
    ],
)
def test_a_loss_that_does_not_fit_the_task_is_explained(
    raw: dict[str, Any], loss: str, positive: list[Any], message: str
) -> None:
    bad = changed(changed(raw, "train.loss", loss), "dataset.positive_classes", positive)
    with pytest.raises(ParamsError, match=message):
        parse_params(bad)


def test_xla_for_a_network_with_max_pooling_is_refused(raw: dict[str, Any]) -> None:
    bad = changed(changed(raw, "train.xla", "always"), "train.preset", "cnn")
    with pytest.raises(ParamsError, match="no deterministic gradient of its max-pooling"):
        parse_params(bad)


def test_xla_on_several_devices_is_refused(raw: dict[str, Any]) -> None:
    bad = changed(changed(raw, "train.xla", "always"), "train.data_parallel", "mirrored")
    with pytest.raises(ParamsError, match="XLA compiles for one device"):
        parse_params(bad)


def test_parameters_cannot_be_changed_in_the_program(raw: dict[str, Any]) -> None:
    params = parse_params(raw)
    change: Callable[..., None] = setattr
    with pytest.raises(AttributeError):
        change(params.train, "seed", 2)


def test_a_missing_file_says_how_to_get_it_back(in_directory: object) -> None:
    with pytest.raises(ParamsError, match="git checkout params.yaml"):
        load_params()


def test_a_commit_from_before_or_after_a_room_can_be_read(raw: dict[str, Any]) -> None:
    stages = {field.name for field in dataclasses.fields(Params)} | {"presets"}
    other = {key: value for key, value in raw.items() if key in stages} | {"conservatory": {"plants": 3}}
    params = parse_params(other, of_commit=True)
    assert params.train == parse_params(raw).train
    with pytest.raises(ParamsError, match="lacks the section of Conservatory"):
        params.section(type("Conservatory", (Section,), {}))


@pytest.mark.parametrize("value", [1e-5, 1.5e-7, 2e20, 0.1, 3])
def test_a_number_is_read_as_dvc_writes_it(raw: dict[str, Any], in_directory: Path, value: float) -> None:
    changed_params = changed(raw, "train.weight_decay", float(value))
    PARAMS_FILE.write_text(dumps_yaml(changed_params))  # what `dvc exp run -S` leaves
    assert load_params().train.settings.weight_decay == value


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.e-5", "+1e-05", "0.00001"])
def test_a_number_is_read_as_people_write_it(in_directory: Path, text: str) -> None:
    file = (REPOSITORY / PARAMS_FILE).read_text()
    PARAMS_FILE.write_text(file.replace("weight_decay: null", f"weight_decay: {text}"))
    assert load_params().train.settings.weight_decay == 1e-5


@pytest.mark.parametrize("text", [".inf", "+.inf", ".nan", "yes", "1:30", '"0.1"'])
def test_what_is_no_finite_number_is_refused_with_a_way_to_mend_the_file(in_directory: Path, text: str) -> None:
    file = (REPOSITORY / PARAMS_FILE).read_text()
    PARAMS_FILE.write_text(file.replace("weight_decay: null", f"weight_decay: {text}"))
    with pytest.raises(ParamsError, match="train.weight_decay is") as caught:
        load_params()
    assert "pipeline schema" in caught.value.remedy
    assert "git diff params.yaml" in caught.value.remedy


@pytest.mark.parametrize(
    "content", [b"train: [1", b"train: 1\ntrain: 2", b"\ttrain: 1", b"day: 2026-13-45", b"\xff\x00\xc3"]
)
def test_a_file_that_is_not_yaml_is_refused_with_a_way_to_mend_it(in_directory: Path, content: bytes) -> None:
    PARAMS_FILE.write_bytes(content)
    with pytest.raises(ParamsError, match="params.yaml is not YAML") as caught:
        load_params()
    assert "git diff params.yaml" in caught.value.remedy


def test_the_schema_describes_the_file_as_it_stands(raw: dict[str, Any]) -> None:
    schema = params_schema()
    assert set(schema["properties"]) == set(raw)
    assert set(schema["$defs"]["TrainParams"]["properties"]) == set(raw["train"])
    assert {"type": "null"} in schema["$defs"]["TrainParams"]["properties"]["epochs"]["anyOf"]
