"""Small models to serve, and a registry with them: the files are real, the trainings are not.

`python -m tests.serving.models DIRECTORY` makes a model, in a process of its own that imports TensorFlow.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import table
from pipeline.evaluation.predictions import PREDICTIONS, read_predictions, write_predictions
from pipeline.files import file_digest
from pipeline.models import interpreter
from pipeline.models.contract import CONTRACT_FILE, LITERT_FILE, Contract, read_contract, write_contract
from pipeline.registry import promotion
from pipeline.serving.served_model import EXAMPLE_FILE, ServedModel, load_served_model
from tests.conftest import REPOSITORY
from tests.integration.recorded import CLASSES, Workspace, making_workspace

SHAPE = (4, 5)
EXAMPLE = np.random.default_rng(7).integers(0, 256, (3, *SHAPE), np.uint8)
CLASSES_KO = ("가방", "티셔츠", "드레스")


@pytest.fixture(scope="session")
def model_files(shared: Callable[[str, Callable[[Path], Any]], Path]) -> Path:
    """The files of a small model for images of 4 x 5 pixels. Not to be changed."""

    def build(path: Path) -> None:
        subprocess.run([sys.executable, "-m", "tests.serving.models", str(path)], cwd=REPOSITORY, check=True)

    return shared("served-model", build)


def copy_model(files: Path, folder: Path, number: int = 1, **changes: Any) -> Contract:
    """Write the files of a version, with its example, into a folder. Each number gives another digest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LITERT_FILE).write_bytes((files / LITERT_FILE).read_bytes() + bytes(number))
    digest = file_digest(folder / LITERT_FILE)
    contract = replace(read_contract(files / CONTRACT_FILE), litert_sha256=digest, **changes)
    write_contract(folder / CONTRACT_FILE, contract)
    answers = interpreter.load(folder / LITERT_FILE, contract).predict(EXAMPLE)
    np.savez(folder / EXAMPLE_FILE, images=EXAMPLE, probabilities=answers)
    return contract


def load_model(files: Path, folder: Path, number: int = 1, **changes: Any) -> ServedModel:
    """Load a version of the small model."""
    copy_model(files, folder, number, **changes)
    return load_served_model(folder, "garments", str(number), threads=1)


class ServingWorkspace(Workspace):
    """A workspace whose registered versions can be served."""

    def __init__(self, root: Path, files: Path) -> None:
        super().__init__(root)
        self._files = files
        params = root / "params.yaml"
        text = params.read_text().replace("name: fashion-mnist", "name: garments")
        params.write_text(text.replace("shadow: none", "shadow: challenger"))

    def add_version(self, number: int) -> str:
        """Register a version that differs from the others. Returns its number."""
        self._number = number
        registration = self.enter(b"model %d" % number)
        assert registration.version, registration
        return registration.version

    def promote(self, version: str) -> None:
        """Make a version the champion."""
        promotion.promote(self.client, "garments", version, reason="test")

    def evaluate(self, **options: Any) -> None:
        """Evaluate with the probabilities that the model really gives."""
        super().evaluate(**options)
        file, contract = self.outputs.evaluation / PREDICTIONS, read_contract(self.outputs.contract_file)
        images, _ = table.read_images(self.outputs.split("test"))
        given = interpreter.load(self.outputs.exported_model, contract).predict(images)
        write_predictions(file, replace(read_predictions(file), probabilities=given))

    def _export(self, model: bytes, *, int8: bool) -> None:
        super()._export(model, int8=False)
        self.outputs.exported_model.write_bytes((self._files / LITERT_FILE).read_bytes() + bytes(self._number))
        contract = replace(
            read_contract(self.outputs.contract_file), litert_sha256=file_digest(self.outputs.exported_model)
        )
        write_contract(self.outputs.contract_file, contract)


@pytest.fixture(scope="module")
def serving_workspace(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, model_files: Path
) -> Iterator[ServingWorkspace]:
    """A workspace with three versions, of which the first is the champion. For all tests of a file."""
    with making_workspace(tmp_path_factory.mktemp("serving") / "project", empty_store) as made:
        workspace = ServingWorkspace(made.root, model_files)
        assert [workspace.add_version(number) for number in (1, 2, 3)] == ["1", "2", "3"]
        workspace.client.set_registered_model_alias("garments", "challenger", "2")
        assert workspace.aliases("garments") == {"champion": "1", "challenger": "2"}
        yield workspace


def _make(directory: Path) -> None:
    import yaml

    from pipeline.models import archive, backend, export, networks
    from pipeline.models.tasks import create_task
    from pipeline.params import parse_params

    raw = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    settings = replace(parse_params(raw).train.settings, widths=(8,))
    backend.make_repeatable(3)
    task = create_task("sparse_categorical_crossentropy", CLASSES)
    network = archive.export(networks.create_network(settings, task, SHAPE, "float32"), settings, task, steps=10)
    export.write_model(directory, network, task, [EXAMPLE], export.Subject("garments", CLASSES, CLASSES_KO, ground=0))


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
