"""Queries over a whole MLflow store: all runs, versions and aliases, however many pages they take."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.tracking.records import all_experiments

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

PAGE = 1000  # entities in one response


def pages(search: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """Yield all results of one of MLflow's paginated searches."""
    token = None
    while True:
        page = search(*arguments, max_results=PAGE, page_token=token)
        yield from page
        if not (token := page.token):
            return


def all_runs(client: "MlflowClient", query: str) -> "dict[str, Run]":
    """Return every run that matches a query, by its id."""
    return {run.info.run_id: run for run in pages(client.search_runs, all_experiments(client), query)}


def all_versions(client: "MlflowClient") -> "list[ModelVersion]":
    """Return every version of every registered model, sorted by name and number."""
    versions = pages(client.search_model_versions, "")
    return sorted(versions, key=lambda version: (version.name, int(version.version)))


def all_aliases(client: "MlflowClient") -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the aliases of every version that has any, by its name and number."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for model in pages(client.search_registered_models, ""):
        for alias, version in sorted(model.aliases.items()):
            key = (model.name, str(version))
            found[key] = (*found.get(key, ()), alias)
    return found
