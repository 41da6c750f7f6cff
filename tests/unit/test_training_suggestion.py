"""The suggested training for datasets of several sizes."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from pipeline.data.table import Dataset
from pipeline.data.training_suggestion import suggest_training
from pipeline.params import parse_params
from tests.conftest import REPOSITORY

OWN = Dataset("parts", 32, 32, ("a", "b", "c"), (), flip=False, channels=3)


@pytest.mark.parametrize(
    ("side", "counts", "expected"),
    [
        (32, [57, 57, 56], {"batch_size": 32, "epochs": 60}),
        (32, [333, 333, 334], {"batch_size": 32, "epochs": 14}),
        (28, [20_000, 20_000, 20_000], {}),
        (64, [333, 333, 334], {"batch_size": 32, "epochs": 14, "widths": [32, 64, 128]}),
        (32, [1500, 30, 30], {"batch_size": 32, "epochs": 9, "class_weights": "balanced"}),
        (8, [7] * 300, {"batch_size": 64, "epochs": 14}),
    ],
)
def test_small_sets_get_small_batches_and_more_epochs(side: int, counts: list[int], expected: dict[str, Any]) -> None:
    suggestion = suggest_training(replace(OWN, height=side, width=side + 8), counts)
    others = {"batch_size": None, "epochs": None, "widths": None, "class_weights": "none"}
    assert suggestion.train == {"preset": "cnn"} | others | expected
    assert f"{sum(counts):,} training images of {side} x {side + 8} pixels" in suggestion.reason
    assert ("class weights" in suggestion.reason) == ("class_weights" in expected)


def test_params_accept_every_suggested_key() -> None:
    raw = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    train = suggest_training(replace(OWN, height=64, width=64), [500, 30, 30]).train
    assert len(train) == 5
    params = parse_params(raw | {"train": raw["train"] | train}).train
    assert (params.settings.batch_size, params.class_weights) == (32, "balanced")
    assert params.settings.widths == (32, 64, 128)
