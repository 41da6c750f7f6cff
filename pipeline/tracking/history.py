"""The aliases of a registered model, moved."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


def move_alias(
    client: "MlflowClient", name: str, alias: str, version: str, *, reason: str, evidence: Mapping[str, str]
) -> None:
    """Let an alias point to a version, wherever it pointed before. Every move of ours goes through here."""
    client.set_registered_model_alias(name, alias, version)
