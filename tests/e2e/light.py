"""A project whose stages are the pipeline's own in all but their work, so that a flow with a new model takes seconds.

Each is a process with its lock, its watch over whoever started it, and its records in MLflow; the registry, DVC and
Prefect are real. No stage imports TensorFlow. `python -m tests.e2e.light STAGE`, in such a project, is a stage.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from pipeline.params import Params
from pipeline.stages import register
from pipeline.stages.entrypoint import execute
from pipeline.tracking.stage_runs import log_evaluation, training_run
from pipeline.tracking.training_runs import TrainingFacts
from pipeline.workspace import STATE, main_repository
from tests.conftest import Project, create_project
from tests.integration.recorded import EPOCHS, MODEL_OUTPUTS, Workspace

DATASET = "tiny"
IMAGES = 600  # in the test split
STEP = 20  # of them that every third model gets right besides: a champion. The two after it are as good, and wait
EPOCH_SECONDS = 0.3
HOLD = STATE / "hold"  # in the main repository: while this file is there, a training stays in its first epoch,
HELD = STATE / "held"  # and leaves this one
STAGES = {
    "split": (["dataset.name"], [], ["data/splits", "reports/split.json", "reports/validation.json"]),
    "train": (["train.seed"], ["data/splits"], [*MODEL_OUTPUTS, "reports/training"]),
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
    """Make such a project, in which nothing has run, with the databases that its first run would take long to make."""
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
    project.run("python", "-m", "pipeline.tracking.store")
    project.run("prefect", "server", "database", "upgrade", "--yes")
    return project


def copy(template: Project, path: Path) -> Project:
    """A copy of a project in which nothing has run."""
    project = template.copy_to(path)
    shutil.copytree(template.home, project.home)
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
            _wait_while_held()
            run.log_epoch(int(epoch["epoch"]), {name: value for name, value in epoch.items() if name != "epoch"})
        run.complete(light.outputs.model, light.root / "reports")


def evaluate(params: Params) -> None:
    light = Light()
    light.evaluate(wrong=range(IMAGES - STEP * (1 + params.train.seed // 3)))
    log_evaluation(light.outputs.model, light.outputs.evaluation)


def _wait_while_held() -> None:
    time.sleep(EPOCH_SECONDS)
    root = main_repository()
    while (root / HOLD).exists():
        (root / HELD).touch()
        time.sleep(0.1)


@contextmanager
def held(project: Project) -> Iterator[Callable[[], bool]]:
    """Let no training of a project go on for the length of a block; yields what tells whether one waits."""
    hold, waits = project.path / HOLD, project.path / HELD
    hold.parent.mkdir(exist_ok=True)
    hold.touch()
    waits.unlink(missing_ok=True)
    try:
        yield waits.exists
    finally:
        hold.unlink()


if __name__ == "__main__":
    stage = sys.argv[1]
    work = {"split": split, "train": train, "evaluate": evaluate, "register": register.run}[stage]

    execute(stage, work)
