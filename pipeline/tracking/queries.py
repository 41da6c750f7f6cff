"""Queries of an MLflow store: one object or None, and all objects over all result pages."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

PAGE = 1000  # results in one response: MLflow's default limit for experiments, and its limit for runs on some backends
EXPERIMENTS_AT_ONCE = 500  # in one search of runs
NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the second: `best` is no version number

T = TypeVar("T")


def find_or_none(request: Callable[..., T], *arguments: str) -> T | None:
    """Make a request of MLflow's client for one object. Returns None if it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return request(*arguments)
    except MlflowException as error:
        if error.error_code not in NOT_FOUND:
            raise
        return None


def pages(search: Callable[..., Any], *arguments: Any, size: int = PAGE) -> Iterator[Any]:
    """Yield all results of one of MLflow's paginated searches."""
    token = None
    while True:
        page = search(*arguments, max_results=size, page_token=token)
        yield from page
        if not (token := page.token):
            return


def all_experiments(client: "MlflowClient", *, deleted: bool = False) -> list[str]:
    """Return the ids of every experiment. `deleted`: include deleted ones."""
    from mlflow.entities import ViewType

    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    return [experiment.experiment_id for experiment in pages(client.search_experiments, view)]


def search_runs(client: "MlflowClient", query: str, *, deleted: bool = False) -> "Iterator[Run]":
    """Yield the runs of every experiment that match a query. `deleted`: include deleted runs and experiments."""
    from mlflow.entities import ViewType

    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    experiments = all_experiments(client, deleted=deleted)
    for first in range(0, len(experiments), EXPERIMENTS_AT_ONCE):
        yield from pages(client.search_runs, experiments[first : first + EXPERIMENTS_AT_ONCE], query, view)


def all_runs(client: "MlflowClient", query: str) -> "dict[str, Run]":
    """Return every run that matches a query, by its id."""
    return {run.info.run_id: run for run in search_runs(client, query)}


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
