"""A project whose stages are the pipeline's own in all but their work, so that a flow with a new model takes seconds.

Each is a process with its lock, its watch over whoever started it, and its records in MLflow; the registry, DVC and
Prefect are real. No stage imports TensorFlow. `python -m tests.e2e.light STAGE`, in such a project, is a stage.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import yaml

from pipeline.params import Params
from pipeline.stages import register
from pipeline.stages.process import execute
from pipeline.tracking.records import TrainingFacts
from pipeline.tracking.runs import log_evaluation, training_run
from pipeline.workspace import STATE, main_repository
from tests.conftest import Project, create_project
from tests.integration.recorded import EPOCHS, Workspace

DATASET = "tiny"
IMAGES = 600  # in the test split
STEP = 20  # of them that every third model gets right besides: a champion. The two after it are as good, and wait
EPOCH_SECONDS = 0.3
HOLD = STATE / "hold"  # in the main repository: the stage of which a file here has the name does not go on
STAGES = {
    "split": (["dataset.name"], [], ["data/splits", "reports/split.json", "reports/validation.json"]),
    "train": (["train.seed"], ["data/splits"], ["models/model.keras", "reports/training"]),
    "evaluate": (["evaluate"], ["data/splits", "models/model.keras"], ["reports/evaluation"]),
    "register": (["register"], ["models/model.keras", "reports/evaluation"], []),
}


class Light(Workspace):
    """The workspace in the current directory. DVC keeps its `dvc.lock`."""

    def __init__(self) -> None:
        super().__init__(Path.cwd())

    @property
    def facts(self) -> TrainingFacts:
        return replace(super().facts, dataset=DATASET)

    def lock(self, stage: str, *paths: str) -> None:
        pass


def build(path: Path, home: Path) -> Project:
    """Make such a project, in which nothing has run."""
    project = create_project(path, home)
    stages = {
        name: {
            "cmd": f"python -m tests.e2e.light {name}",
            "deps": ["tests/e2e/light.py", *deps],
            "params": params,
            **({"outs": outs} if outs else {"outs": [{"reports/registration.json": {"cache": False}}]}),
        }
        for name, (params, deps, outs) in STAGES.items()
    }
    (path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (path / "dvc.lock").unlink()
    project.set_params(**{"dataset.name": DATASET, "train.seed": 1, "register.max_ece": 1.0})
    project.commit("stages that do next to nothing")
    return project


def model_of(seed: int) -> bytes:
    """The model file that a seed leads to."""
    return f"the model of seed {seed}".encode()


def split(_params: Params) -> None:
    Light().split(IMAGES, DATASET)


def train(params: Params) -> None:
    light = Light()
    light.train(model_of(params.train.seed), seed=params.train.seed)
    with training_run(light.facts) as run:
        for epoch in EPOCHS:
            time.sleep(EPOCH_SECONDS)
            run.log_epoch(int(epoch["epoch"]), {name: value for name, value in epoch.items() if name != "epoch"})
        run.complete(light.outputs.model, light.root / "reports")


def evaluate(params: Params) -> None:
    light = Light()
    light.evaluate(wrong=range(IMAGES - STEP * (1 + params.train.seed // 3)))
    log_evaluation(light.outputs.model, light.outputs.evaluation)


if __name__ == "__main__":
    stage = sys.argv[1]
    work = {"split": split, "train": train, "evaluate": evaluate, "register": register.run}[stage]

    def run(params: Params) -> None:
        print(f"this is {stage}", flush=True)
        while (main_repository() / HOLD / stage).exists():
            time.sleep(0.05)
        work(params)

    execute(stage, run)
