"""The facts that a model card is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.catalog import Entry
from pipeline.data.table import Dataset
from pipeline.models.contract import Contract

WEAKEST_CLASSES = 3


@dataclass(frozen=True)
class Facts:
    """The facts of a card. The mappings have the content and the keys of the files that the stages wrote."""

    name: str  # of the registered model
    version: str | None  # None: not registered
    model_uri: str  # for MLflow's `load_model`
    outcome: str  # of the decision
    reason: str
    dataset: Dataset
    entry: Entry | None  # of the catalogue; None: the user's own data
    sources: Mapping[str, int]  # number of training and validation images by source: `official` or a batch
    validation: Mapping[str, Any]  # validation.json
    split: Mapping[str, Any]  # split.json
    settings: Mapping[str, Any]  # settings.json
    history: Sequence[Mapping[str, float]]  # history.csv
    metrics: Mapping[str, Any]  # metrics.json
    gate: Mapping[str, Any]  # gate.json
    classes: Sequence[Mapping[str, str]]  # per_class.csv
    confusions: Mapping[tuple[str, str], int]  # images by actual and predicted class, from confusion.csv
    reliability: Sequence[Mapping[str, str]]  # reliability.csv
    model_bytes: int  # of the file that is served
    contract: Contract | None  # None: a commit without contracts trained the model
    run_id: str
    experiment: str  # MLflow's id of the experiment of the run
    recorded: str  # start time of the run
    tags: Mapping[str, str]  # of the run
    figures: Mapping[str, bytes]  # PNG files by path, of `model_card.FIGURES` those that exist

    @property
    def title(self) -> str:
        """`fashion-mnist version 3`."""
        return f"{self.name} version {self.version}" if self.version else f"{self.name}, not registered"

    @property
    def dataset_title(self) -> str:
        """The dataset's title in the catalogue, or else its name."""
        return self.entry.title if self.entry else self.dataset.name

    @property
    def binary(self) -> bool:
        """True for a yes-or-no task."""
        return bool(self.settings["loss"] == "binary_crossentropy")

    @property
    def best_epoch(self) -> Mapping[str, float]:
        """The epoch whose weights were kept."""
        return next(epoch for epoch in self.history if epoch["epoch"] == self.settings["best_epoch"])

    @property
    def weakest(self) -> list[Mapping[str, str]]:
        """The rows of `classes` with the lowest recall."""
        return sorted(self.classes, key=lambda row: float(row["recall"]))[:WEAKEST_CLASSES]
