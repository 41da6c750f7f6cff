"""The ledger: the number of challengers that were judged on the same test images.

Each comparison makes the test images less reliable for the next one, whatever was decided. An entry is a tag of the
training run, `judged.DIGEST`, with the challenger's number as its value, so that MLflow's pages can search it. Deleting
a version does not delete its run. A deleted run or experiment counts until `mlflow gc` removes it permanently.

The count follows the images and not the file: a test split with corrected labels or with another class has another
digest, and continues the count of the splits that it shares most of its images with.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from pipeline.registry.version_predictions import read_run_predictions
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.queries import search_runs
from pipeline.tracking.store import Store, explained
from pipeline.tracking.training_runs import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEDGER_TAG = "judged"  # followed by the MD5 of the test split
SHARED = 0.5  # of the images of the smaller of two test splits: from here on they count as the same


def enter(record: Record, test: str, ids: Collection[str]) -> int:
    """Enter a run's model in the ledger of a test split, and return its number, from 1. Idempotent.

    Called before the comparison: a process that is killed in between may have used the test images already.

    Args:
        test: MD5 of the split, as in the tag `data.test`.
        ids: of its images.
    """
    place, is_entered = find_place(record.store, record.client, record.tags[MODEL_TAG], test, ids)
    if not is_entered:
        record.set_tags({f"{LEDGER_TAG}.{test}": str(place)})
    return place


def find_place(store: Store, client: "MlflowClient", model: str, test: str, ids: Collection[str]) -> tuple[int, bool]:
    """Return the number of a model in the ledger, and if it is entered. Otherwise it is the number that it would get.

    Args:
        model: SHA-256 of the model file.
        test: MD5 of the split, as in the tag `data.test`.
        ids: of its images.
    """
    tag = f"{LEDGER_TAG}.{test}"
    with explained(store):
        judged = search_runs(client, f"tags.`{tag}` != ''", deleted=True)
        numbers = {run.data.tags[MODEL_TAG]: int(run.data.tags[tag]) for run in judged}
        if model in numbers:
            return numbers[model], True
        former = max(numbers.values()) if numbers else _count_on_similar_splits(client, ids)
    return former + 1, False


def _count_on_similar_splits(client: "MlflowClient", ids: Collection[str]) -> int:
    """Return the largest count of the earlier splits that share `SHARED` of their images with a new one.

    The images of an earlier split are those of its recorded predictions. A split without any is not recognised.
    """
    counts: dict[str, int] = {}  # by the MD5 of the split
    of_split: dict[str, bool] = {}
    for run in search_runs(client, f"tags.`{MODEL_TAG}` != ''", deleted=True):
        for tag, number in run.data.tags.items():
            if tag.startswith(f"{LEDGER_TAG}."):
                test = tag.removeprefix(f"{LEDGER_TAG}.")
                counts[test] = max(counts.get(test, 0), int(number))
                if test not in of_split:
                    evaluated, predictions = read_run_predictions(client, run)
                    if predictions and evaluated == test:
                        shared = len(set(ids).intersection(predictions.ids))
                        of_split[test] = shared >= SHARED * min(len(ids), len(predictions.ids))
    return max((number for test, number in counts.items() if of_split.get(test)), default=0)
