"""The parameters that a stage declares in `dvc.yaml` are those that its code reads, no more and no fewer."""

import dataclasses
import os
from importlib import import_module
from typing import Any

import pytest
import yaml

from pipeline import params as params_module
from pipeline.params import load_params
from tests.conftest import DECLARED_STAGES, Project

SECTIONS = {
    params_module.DatasetParams: "dataset",
    params_module.ValidateParams: "validate",
    params_module.SplitParams: "split",
    params_module.TrainParams: "train",
    params_module.TrainSettings: "train",
    params_module.EvaluateParams: "evaluate",
    params_module.RegisterParams: "register",
}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The keys of `params.yaml` that are read while the test runs."""
    keys: set[str] = set()

    def recorder(kind: type, section: str) -> Any:
        fields = {field.name for field in dataclasses.fields(kind)} - {"settings"}

        def get(self: object, name: str) -> Any:
            if name in fields:
                keys.add(f"{section}.{name}")
            return object.__getattribute__(self, name)

        return get

    for kind, section in SECTIONS.items():
        monkeypatch.setattr(kind, "__getattribute__", recorder(kind, section))
    return keys


def declared_keys(stage: str, definition: dict[str, Any], raw: dict[str, Any]) -> set[str]:
    keys: set[str] = set()
    for entry in definition.get("params", []):
        if entry.startswith("presets."):
            continue  # the preset's values are read as those of `train`
        section, _, key = entry.partition(".")
        keys |= {entry} if key else {f"{section}.{name}" for name in raw[section]}
    return keys


@pytest.mark.parametrize("stage", DECLARED_STAGES)
def test_a_stage_reads_exactly_what_it_declares(
    stage: str, trained: Project, read: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.path)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_", "PIPELINE_"))]:
        monkeypatch.delenv(name)
    definition = yaml.safe_load((trained.path / "dvc.yaml").read_text())["stages"][stage]
    raw = yaml.safe_load((trained.path / "params.yaml").read_text())
    params = load_params()
    if stage == "register":
        (trained.path / "mlflow.db").unlink()  # a model that was judged before is found, and judged by nothing
    read.clear()
    import_module(f"pipeline.stages.{stage}").run(params)
    assert read == declared_keys(stage, definition, raw)
