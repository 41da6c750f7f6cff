"""The ledger: how many challengers were ever judged on the same test images.

Each of them wears the images out a little, whatever was decided. An entry is a tag of the run that made the model,
`judged.DIGEST` with the challenger's place in the order, so that MLflow's pages find them all. Runs stay when versions
are deleted. A deleted run still counts, also one of a deleted experiment, until `mlflow gc` removes it for good.
"""

from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.queries import search_runs
from pipeline.tracking.records import Record
from pipeline.tracking.store import explained

LEDGER_TAG = "judged"  # followed by the MD5 of the test split


def enter(record: Record, test: str) -> int:
    """The place, from 1, of a run's model among the challengers judged on a test split; the same whenever asked.

    It is entered before it is judged: whoever was killed in between has looked at the test images all the same.

    Args:
        test: MD5 of the split, as in the tag `data.test`.
    """
    tag = f"{LEDGER_TAG}.{test}"
    with explained(record.store):
        judged = search_runs(record.client, f"tags.`{tag}` != ''", deleted=True)
        places = {run.data.tags[MODEL_TAG]: int(run.data.tags[tag]) for run in judged}
    model = record.tags[MODEL_TAG]
    if model not in places:
        places[model] = max(places.values(), default=0) + 1
        record.set_tags({tag: str(places[model])})
    return places[model]
