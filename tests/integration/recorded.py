"""A workspace with stage outputs made by hand, and a look into its store: what the tests of the tracking share."""

import csv
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from pipeline.data import table
from pipeline.data.image_background import measure_ground
from pipeline.evaluation.predictions import PREDICTIONS, Predictions, write_predictions
from pipeline.files import file_digest, write_json
from pipeline.models.contract import Contract, ContractTask, ExportCheck, Int8Check, write_contract
from pipeline.params import load_params
from pipeline.registry.registration import Registration, register
from pipeline.tracking.parent_run_id import PARENT_FILE_VARIABLE
from pipeline.tracking.stage_outputs import (
    CONTRACT,
    EVALUATION,
    EXPORTED_MODEL,
    INT8_MODEL,
    MODEL,
    QUANTIZED,
    TRAINING,
    Outputs,
    dvc_digest,
    flatten,
)
from pipeline.tracking.stage_runs import log_evaluation, training_run
from pipeline.tracking.store import locate, open_store
from pipeline.tracking.training_runs import TrainingFacts, find_or_rebuild
from tests.conftest import REPOSITORY, settle_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MODEL_OUTPUTS = (MODEL, EXPORTED_MODEL, CONTRACT, QUANTIZED)
CLASSES = ("Bag", "T-shirt/top", "Dress")
EPOCHS = [
    {"epoch": 1, "loss": 0.9, "accuracy": 0.6, "validation_loss": 0.8, "validation_accuracy": 0.7},
    {"epoch": 2, "loss": 0.5, "accuracy": 0.8, "validation_loss": 0.4, "validation_accuracy": 0.9},
    {"epoch": 3, "loss": 0.4, "accuracy": 0.9, "validation_loss": 0.5, "validation_accuracy": 0.8},
]
SETTINGS: dict[str, Any] = {
    "preset": "mlp",
    "seed": 1,
    "loss": "sparse_categorical_crossentropy",
    "classes": list(CLASSES),
    "widths": [8],
    "best_epoch": 2,
    "parameters": 123,
    "multiply_adds": 1000,
}
# The smallest PNG there is: one black pixel. Tracking never looks inside.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010000000037"
    "6ef9240000000a4944415408d76360000000020001e221bc330000000049454e44ae426082"
)


class Workspace:
    """A directory in which the stages seem to have run. Its model file is any bytes: tracking never looks inside."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outputs = Outputs(root)

    def split(
        self, images: int = 6, dataset: str = "garments", classes: tuple[str, ...] = CLASSES, first: int = 0
    ) -> None:
        """Three splits of so many images, of which every third shows the same class. `first`: number of the first."""
        garments = table.Dataset(dataset, 4, 5, classes, classes, flip=True)
        for seed, name in enumerate(("train", "validation", "test")):
            pixels = np.random.default_rng(seed).integers(0, 256, (images, 4, 5), np.uint8)
            with table.writer(self.outputs.split(name), garments) as writer:
                labels = (np.arange(images) % len(classes)).astype(np.uint8)
                ids = [f"{name}-{row}" for row in range(first, first + images)]
                writer.write(pixels, labels, ids, pa.array(["official"] * images))
        found = {"name": "schema", "meaning": "columns", "passed": True, "severity": "critical", "count": 0}
        write_json(self.root / "reports/validation.json", {"passed": True, "expectations": [found]})
        counts = {"images": images, "classes": dict.fromkeys(CLASSES, images // len(CLASSES))}
        splits = dict.fromkeys(("train", "validation", "test"), counts)
        write_json(self.root / "reports/split.json", {"seed": 20, "validation_fraction": 0.5, "splits": splits})

    def train(self, model: bytes, *, int8: bool = True, **settings: Any) -> None:
        self.outputs.model.parent.mkdir(exist_ok=True)
        self.outputs.model.write_bytes(model)
        self._export(model, int8=int8)
        self.outputs.training.mkdir(parents=True, exist_ok=True)
        write_json(self.outputs.training / "settings.json", SETTINGS | settings)
        _write_table(self.outputs.training / "history.csv", EPOCHS)
        (self.outputs.training / "curves.png").write_bytes(PNG)
        self.lock(
            "train",
            *MODEL_OUTPUTS,
            TRAINING,
            *(f"data/splits/{name}.parquet" for name in ("train", "validation")),
        )

    def _export(self, model: bytes, *, int8: bool) -> None:
        """Write the other files of the model."""
        self.outputs.exported_model.write_bytes(b"exported " + model)
        quantized = self.root / INT8_MODEL
        quantized.parent.mkdir(exist_ok=True)
        quantized.unlink(missing_ok=True)
        check = None
        if int8:
            quantized.write_bytes(b"quantized " + model)
            digest = file_digest(quantized)
            check = Int8Check(sha256=digest, images=6, accuracy=0.5, float_accuracy=0.75, other_top_class=2)
        dataset = table.read_dataset(self.outputs.split("validation"))
        contract = Contract(
            dataset=dataset.name,
            classes=dataset.classes,
            classes_ko=dataset.classes_ko,
            height=dataset.height,
            width=dataset.width,
            ground=measure_ground(table.read_images(self.outputs.split("validation"))[0]),
            task=ContractTask(loss="sparse_categorical_crossentropy", units=len(dataset.classes), positive_classes=()),
            keras_sha256=file_digest(self.outputs.model),
            litert_sha256=file_digest(self.outputs.exported_model),
            check=ExportCheck(images=6, largest_difference=2e-6, other_top_class=0),
            int8=check,
        )
        write_contract(self.outputs.contract_file, contract)

    def forget_contract(self) -> None:
        """Leave of the model what a commit without contracts would write."""
        self.outputs.exported_model.unlink()
        self.outputs.contract_file.unlink()

    def evaluate(
        self,
        *,
        accuracy: float = 0.75,
        passed: bool = True,
        classes: tuple[str, ...] = CLASSES,
        wrong: Collection[int] = (),
        confidence: float = 0.95,
    ) -> None:
        """`wrong`: the rows of the test split that the model gets wrong."""
        self.outputs.evaluation.mkdir(parents=True, exist_ok=True)
        interval = {"accuracy_low": 0.7, "accuracy_high": 0.8}
        metrics = {"accuracy": accuracy, **interval, "ece": 0.05, "macro_f1": 0.7, "images": 6, "loss": None}
        write_json(self.outputs.evaluation / "metrics.json", metrics)
        checks = [{"name": "min_accuracy", "threshold": 0.95, "value": 0.9, "passed": passed}]
        write_json(self.outputs.evaluation / "gate.json", {"passed": passed, "checks": checks})
        _write_table(
            self.outputs.evaluation / "per_class.csv",
            [
                {"class": name, "class_ko": name, "precision": 0.5, "recall": 0.5 + place / 10, "f1": 0.5, "support": 2}
                for place, name in enumerate(classes)
            ],
        )
        write_predictions(
            self.outputs.evaluation / PREDICTIONS, answer(self.outputs.split("test"), classes, wrong, confidence)
        )
        _write_table(
            self.outputs.evaluation / "confusion.csv", [{"actual": name, "predicted": name} for name in classes]
        )
        reliability = {"low": 0.9, "high": 1.0, "confidence": 0.95, "accuracy": 0.75, "images": 6}
        _write_table(self.outputs.evaluation / "reliability.csv", [reliability])
        (self.outputs.evaluation / "figures").mkdir(exist_ok=True)
        for name in ("confusion", "reliability", "gallery"):
            (self.outputs.evaluation / f"figures/{name}.png").write_bytes(PNG)
        self.lock("evaluate", MODEL, EVALUATION)

    def register(self) -> Registration:
        """What the stage of that name does."""
        params = load_params(self.root / "params.yaml").register
        record = find_or_rebuild(self.outputs)
        record.add_evaluation(self.outputs)
        registration = register(record, self.outputs, params)
        self.lock("register", MODEL, EVALUATION)
        return registration

    def enter(self, model: bytes, **evaluation: Any) -> Registration:
        """Train, evaluate and register."""
        self.train(model)
        self.evaluate(**evaluation)
        log_evaluation(self.outputs.model, self.outputs.evaluation)
        return self.register()

    def lock(self, stage: str, *paths: str) -> None:
        """Say in `dvc.lock` that a stage has run with these files."""
        file = self.root / "dvc.lock"
        content: dict[str, Any] = yaml.safe_load(file.read_text()) if file.exists() else {"stages": {}}
        content["stages"][stage] = {"outs": [{"path": path, "md5": dvc_digest(self.root / path)} for path in paths]}
        file.write_text(yaml.safe_dump(content))

    @property
    def facts(self) -> TrainingFacts:
        params = {name: value for name, value in flatten(self.outputs.settings()).items() if name != "best_epoch"}
        inputs = {name: self.outputs.split(name) for name in ("train", "validation")}
        return TrainingFacts("garments", params, inputs, {"threads": 2})

    def record_training(self) -> None:
        """What `train` does, for the outputs that stand there."""
        with training_run(self.facts) as run:
            for epoch in EPOCHS:
                run.log_epoch(int(epoch["epoch"]), {name: value for name, value in epoch.items() if name != "epoch"})
            run.complete(self.outputs.model, self.root / "reports")

    def copy_outputs(self, root: Path, store: Path) -> "Workspace":
        """The same outputs in another place with a store of its own, as DVC's remote brings them to a colleague."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("mlflow.db", "mlruns", ".pipeline"))
        shutil.copy(store, root / "mlflow.db")
        settle_store(root / "mlflow.db", store.parent)
        return Workspace(root)

    @property
    def client(self) -> "MlflowClient":
        return open_store(locate(self.root))

    def runs(self) -> "list[Run]":
        """Every run in the store, newest first, but for those that tell of the registry's moves."""
        found = self.client.search_experiments()
        experiments = [experiment.experiment_id for experiment in found if not experiment.name.endswith(" history")]
        return list(self.client.search_runs(experiments, order_by=["attributes.start_time DESC"]))

    def aliases(self, name: str) -> dict[str, str]:
        """Alias -> version."""
        return {alias: str(version) for alias, version in self.client.get_registered_model(name).aliases.items()}

    def versions(self, name: str) -> "list[ModelVersion]":
        """Every version of a registered model, oldest first."""
        found = self.client.search_model_versions(f"name = '{name}'")
        return sorted(found, key=lambda version: int(version.version))

    def artifacts(self, run: "Run", path: str | None = None) -> set[str]:
        """The files that a run holds."""
        found = self.client.list_artifacts(run.info.run_id, path)
        files = {entry.path for entry in found if not entry.is_dir}
        return files.union(*(self.artifacts(run, entry.path) for entry in found if entry.is_dir))

    def download(self, run: "Run", path: str) -> bytes:
        return Path(self.client.download_artifacts(run.info.run_id, path)).read_bytes()

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=tests", "-c", "user.email=tests@example.invalid")
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True).stdout


def answer(split: Path, classes: tuple[str, ...], wrong: Collection[int], confidence: float = 0.95) -> Predictions:
    """Answers to a split that are right but for some rows. Of two classes, the second is the dataset's first two."""
    _, labels = table.read_images(split)
    if len(classes) == 2:
        labels = (labels < 2).astype(np.uint8)
    predicted = labels.astype(int)
    rows = sorted(wrong)
    predicted[rows] = (predicted[rows] + 1) % len(classes)
    probabilities = np.full((len(labels), len(classes)), (1 - confidence) / (len(classes) - 1))
    probabilities[np.arange(len(labels)), predicted] = confidence
    return Predictions(classes=classes, ids=table.read_ids(split), labels=labels, probabilities=probabilities)


@pytest.fixture(scope="session")
def empty_store(shared: Callable[[str, Callable[[Path], Any]], Path]) -> Path:
    """A new store's database: making one takes seconds, copying it does not."""

    def make(path: Path) -> None:
        (path / "dvc.yaml").touch()
        open_store(locate(path))

    return shared("empty-store", make) / "mlflow.db"


@pytest.fixture
def workspace(tmp_path: Path, empty_store: Path) -> Iterator[Workspace]:
    """A workspace whose data are split, which is the current directory and has a store with nothing in it."""
    with making_workspace(tmp_path / "project", empty_store) as made:
        yield made


@contextmanager
def making_workspace(root: Path, store: Path) -> Iterator[Workspace]:
    """The same in another place, for the length of the block."""
    with pytest.MonkeyPatch.context() as environment:
        for name in (
            "MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT", PARENT_FILE_VARIABLE, "DVC_ROOT", "DVC_EXP_NAME",
            "DVC_EXP_BASELINE_REV"
        ):  # fmt: skip
            environment.delenv(name, raising=False)
        made = lay_out(root)
        environment.chdir(root)
        shutil.copy(store, root / "mlflow.db")
        settle_store(root / "mlflow.db", store.parent)
        yield made


def lay_out(root: Path) -> Workspace:
    """A workspace whose data are split, in a new directory."""
    root.mkdir()
    for name in ("dvc.yaml", "params.yaml", "requirements.lock", ".gitignore"):
        shutil.copy(REPOSITORY / name, root / name)
    shutil.copytree(REPOSITORY / "data/catalog", root / "data/catalog")
    made = Workspace(root)
    made.split()
    return made


def fill(workspace: Workspace, template: Path) -> None:
    """Put into a workspace all that another one holds."""
    shutil.copytree(template, workspace.root, dirs_exist_ok=True)
    settle_store(workspace.root / "mlflow.db", template)


@pytest.fixture
def prefect_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Prefect's database is for this test; there is none yet."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_API_URL, temporary_settings

    file = tmp_path / "prefect/prefect.db"
    file.parent.mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(file.parent))
    address = {PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{file}"}
    with temporary_settings(updates=address, restore_defaults={PREFECT_API_URL}):
        yield file


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
