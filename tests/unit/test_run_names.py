"""Names of runs in MLflow."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.params import load_params
from pipeline.tracking.flow_runs import StageResult, name_result, summarise
from pipeline.tracking.run_names import LONGEST, format_values, name_training
from tests.conftest import REPOSITORY

PRESETS = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["presets"]


def name(**changes: Any) -> str:
    return name_training(REPOSITORY, {"preset": "mlp", "seed": 1, **PRESETS["mlp"], **changes})


def test_a_training_with_the_values_of_its_preset_has_its_name() -> None:
    assert name() == "mlp"
    assert name(widths=(128,)) == "mlp"  # as the stage has it
    assert name(weight_decay=0) == "mlp"


def test_a_training_is_named_by_what_differs_from_its_preset() -> None:
    assert name(epochs=2, widths=[256, 64], seed=3) == "mlp seed=3 widths=[256,64] epochs=2"
    assert name(learning_rate=0.0312345) == "mlp learning_rate=0.0312"
    assert name(loss="binary_crossentropy") == "mlp loss=binary_crossentropy"


def test_an_experiments_training_has_its_name_first() -> None:
    assert name_training(REPOSITORY, {"preset": "cnn"}, "sunny-day") == "experiment sunny-day: cnn"


def test_a_name_needs_no_presets(tmp_path: Path) -> None:
    assert name_training(tmp_path, {"preset": "mlp", "epochs": 9}) == "mlp"
    (tmp_path / "params.yaml").write_text("presets: [")
    assert name_training(tmp_path, {"preset": "mlp", "seed": 2}) == "mlp seed=2"


def test_a_long_name_is_cut_off() -> None:
    assert len(name(network="x" * 300)) == LONGEST


def test_values_are_formatted_in_short() -> None:
    values = {"learning_rate": 0.00001234, "widths": (64, 128), "flip": True}
    assert format_values(values) == "learning_rate=1.23e-05 widths=[64,128] flip=True"


def test_the_params_left_out_of_names_are_those_of_the_project() -> None:
    from pipeline.tracking.run_names import USUAL

    train = load_params(REPOSITORY / "params.yaml").train
    assert {key: getattr(train, key) for key in USUAL} == USUAL


def test_a_flow_is_named_by_what_its_stages_did() -> None:
    def of(**outcomes: Any) -> str:
        return summarise([StageResult(stage, outcome, 1.0) for stage, outcome in outcomes.items()])

    assert of(split="unchanged", train="ran", evaluate="ran") == "trained"
    assert of(split="unchanged", train="unchanged") == "nothing changed"
    assert of(split="ran", train="restored", evaluate="restored") == "ran split; restored train, evaluate"
    assert of(train="failed", evaluate="not reached") == "train failed"
    assert of(train="ran", evaluate="not reached") == "trained"
    assert of(split="ran", train="not reached") == "stopped"


def test_a_flow_is_named_by_its_result() -> None:
    champion = {"result.decision": "champion", "result.version": "3"}
    assert name_result("trained", champion, "mlp 90.20% dfaa08b4") == "champion 3: mlp 90.20% dfaa08b4"
    assert name_result("nothing changed", champion, "mlp") == "nothing changed: champion 3: mlp"
    assert name_result("trained", {"result.decision": "rejected"}, "mlp") == "rejected: mlp"
    assert name_result("trained", {}, "mlp") == "trained: mlp"
    assert name_result("ran ingest", {}, "") == "ran ingest"
