"""The section `sweep` of params.yaml: what is refused."""

from typing import Any

import pytest
import yaml

from pipeline.errors import ParamsError
from pipeline.params import PARAMS_FILE, parse_params
from pipeline.search.params import SweepParams, searchable
from tests.conftest import REPOSITORY


def parse(**section: Any) -> SweepParams:
    raw = yaml.safe_load((REPOSITORY / PARAMS_FILE).read_text())
    raw["sweep"] |= section
    return parse_params(raw).section(SweepParams)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rat": {"low": 0.1, "high": 0.2}}, "sweep.space.learning_rat: learning_rat cannot be searched"),
        ({"seed": {"low": 1, "high": 9}}, "seed cannot be searched"),
        ({"epochs": {"low": 1.5, "high": 4}}, "sweep.space.epochs contains 1.5, which train.epochs cannot be"),
        ({"momentum": {"low": 0.5, "high": 1.5}}, "sweep.space.momentum contains 1.5, which train.momentum cannot be"),
        ({"network": {"choices": ["mlp", "vit"]}}, "sweep.space.network contains 'vit', which train.network cannot be"),
        ({"network": {"low": 1, "high": 2}}, "train.network is not a number: list its values under choices"),
        ({"momentum": {"low": 0.5}}, "sweep.space.momentum needs low and high, or choices"),
        ({"momentum": {"low": 0.5, "high": 0.6, "choices": [0.1]}}, "has choices and a range"),
        ({"momentum": {"low": 0.6, "high": 0.5}}, "sweep.space.momentum.low is 0.6, above high, 0.5"),
        ({"weight_decay": {"low": 0, "high": 1.0, "log": True}}, "a logarithmic scale needs a positive value"),
        ({"epochs": {"low": 1, "high": 4, "step": 0.5}}, "step is 0.5, but epochs is an integer"),
        ({"shift": {"low": 0, "high": 2, "when": {"nettwork": "cnn"}}}, "nettwork cannot be searched"),
        ({"shift": {"low": 0, "high": 2, "when": {"network": "cnm"}}}, "sweep.space.shift.when contains 'cnm'"),
        (
            {"shift": {"choices": [1], "when": {"erase": 0}}, "erase": {"choices": [0], "when": {"shift": 1}}},
            "the conditions of sweep.space form a circle: erase, shift",
        ),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as error:
        parse(space=space)
    assert message in str(error.value)


def test_a_grid_needs_listed_values() -> None:
    with pytest.raises(ParamsError, match="momentum is a range without steps"):
        parse(sampler="grid", space={"momentum": {"low": 0.5, "high": 0.9}})
    parse(sampler="grid", space={"momentum": {"low": 0.5, "high": 0.9, "step": 0.1}, "shift": {"low": 0, "high": 2}})


def test_every_setting_of_a_training_can_be_searched() -> None:
    assert {"learning_rate", "widths", "flip", "network", "preset", "class_weights"} <= searchable().keys()
    assert not {"seed", "memory_limit_mb", "data_parallel", "quantize"} & searchable().keys()
