"""The champion of a workspace's dataset: find it, and load its model on demand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.registry.alias_history import find_aliases
from pipeline.registry.aliases import CHAMPION
from pipeline.registry.load_version import load_version
from pipeline.registry.registration import current_name
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.store import Store, explained, locate, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Champion:
    """A registered version with the alias `champion`."""

    store: Store
    client: "MlflowClient"
    version: "ModelVersion"

    def __str__(self) -> str:
        return f"{self.version.name} version {self.version.version}"

    @property
    def digest(self) -> str:
        """SHA-256 of its model file; empty if this pipeline did not register it."""
        return str(self.version.tags.get(MODEL_TAG, ""))

    def create_predictor(self, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
        """Load the model.

        Args:
            shape: of an image.

        Returns:
            a function from images uint8 [n, *shape] to the model's outputs, float32 [n, outputs].

        Raises:
            CannotBeJudged: the file is gone, altered or damaged, or the model takes images of another shape.
        """
        with explained(self.store):
            loaded = load_version(self.store, self.client, self.version)
        loaded.require_shape(shape)
        return loaded.predict


def find_champion(workspace: Path) -> Champion | None:
    """Find the champion of the workspace's dataset. None if there is none yet. Does not create a missing store.

    Raises:
        TrackingError: the store cannot be used.
    """
    store = locate(workspace)
    if store.database and not store.database.exists():
        return None
    name = current_name(workspace)
    client = open_store(store)
    with explained(store):
        number = find_aliases(client, name).get(CHAMPION)
        return Champion(store, client, client.get_model_version(name, number)) if number else None
