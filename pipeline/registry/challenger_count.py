"""The ledger: the number of challengers that were judged on the same test images.

Each comparison makes the test images less reliable for the next one, whatever was decided. An entry is a tag of the
training run, `judged.DIGEST`, with the challenger's number as its value, so that MLflow's pages can search it. Deleting
a version does not delete its run. A deleted run or experiment counts until `mlflow gc` removes it permanently.
"""

from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.queries import search_runs
from pipeline.tracking.store import explained
from pipeline.tracking.training_runs import Record

LEDGER_TAG = "judged"  # followed by the MD5 of the test split


def enter(record: Record, test: str) -> int:
    """Enter a run's model in the ledger of a test split, and return its number, from 1. Idempotent.

    Called before the comparison: a process that is killed in between may have used the test images already.

    Args:
        test: MD5 of the split, as in the tag `data.test`.
    """
    tag = f"{LEDGER_TAG}.{test}"
    with explained(record.store):
        judged = search_runs(record.client, f"tags.`{tag}` != ''", deleted=True)
        numbers = {run.data.tags[MODEL_TAG]: int(run.data.tags[tag]) for run in judged}
    model = record.tags[MODEL_TAG]
    if model not in numbers:
        numbers[model] = max(numbers.values(), default=0) + 1
        record.set_tags({tag: str(numbers[model])})
    return numbers[model]
