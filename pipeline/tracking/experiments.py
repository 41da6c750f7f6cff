"""MLflow's experiments: create them, describe them, and choose the columns of their tables.

MLflow shows an experiment's runs with three columns that it chooses itself. A shared view chooses others: it is a tag
of the experiment, and a link with its key opens it. The description has this link.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.tracking.descriptions import must_write, sign

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

    from pipeline.tracking.store import Store

KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"  # MLflow's pages for models, not for chatbots
NOTE_TAG = "mlflow.note.content"
VIEW = "runs"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
NEWEST_FIRST = {"orderByKey": "attributes.start_time", "orderByAsc": False}

TRAININGS = """\
Trainings on {name}, with the pipeline runs, sweeps and reviews around them.

**[Trainings with accuracy, decision, data and commit]({table})** · [Registered models](#/models)

| column | meaning |
|---|---|
| Run Name | of a training: preset, changed parameters, validation accuracy, first digits of the model's SHA-256 |
| `best_validation_accuracy` | accuracy on the validation images, of the kept epoch. Choose models by this one |
| `test_accuracy` | accuracy on the test images, measured once. It chooses nothing |
| `decision` | champion, challenger (waits), not promoted, or rejected (by the gate); empty: not judged |
| Dataset | the splits, with their MD5 in `dvc.lock` |
| Version | git commit of the training; uncommitted changes are in the artifact `source/changes.diff` |
| Models | the registered version |

To compare trainings, tick them and press Compare. To compare two versions image by image, run \
`pipeline compare champion challenger`."""

MOVES = """\
History of the aliases of the registered model {name}: one run per move. `pipeline history` prints it.

**[Moves with time, author, versions and reason]({table})** · [The registered model](#/models/{quoted})

Do not delete these runs: `pipeline rollback` reads them. The run `order` has their order."""

SCORINGS = """\
Scorings of many images by the registered model {name}: one run per `pipeline score`.

**[Scorings with version, images, failures and drift]({table})** · [The registered model](#/models/{quoted})"""

# By purpose: the description, and the columns and the filter of the shared view.
TRAINING, HISTORY, SCORING = "training", "history", "scoring"
TEXTS = {TRAINING: TRAININGS, HISTORY: MOVES, SCORING: SCORINGS}
VIEWS: Mapping[str, Mapping[str, Any]] = {
    TRAINING: {
        "selectedColumns": [
            "metrics.`best_validation_accuracy`",
            "metrics.`test_accuracy`",
            "tags.`decision`",
            "attributes.`Dataset`",
            "attributes.`Version`",
            "attributes.`Models`",
        ],
        "searchFilter": "tags.`data.train` LIKE '_%'",  # the trainings, without the runs above them
    },
    HISTORY: {
        "selectedColumns": ["tags.`alias`", "tags.`from`", "tags.`to`", "tags.`who`", "tags.`kind`", "tags.`reason`"],
        "searchFilter": "tags.`history.role` = 'move'",
    },
    SCORING: {
        "selectedColumns": [
            "tags.`scored.version`",
            "tags.`input`",
            "metrics.`pictures`",
            "metrics.`failed`",
            "metrics.`drift/predicted`",
            "metrics.`drift/confidence`",
        ],
    },
}


def experiment_id(client: "MlflowClient", store: "Store", name: str, purpose: str = TRAINING, of: str = "") -> str:
    """Return the id of an experiment. Creates it if needed; safe if two processes do so at the same time.

    Args:
        purpose: a key of TEXTS.
        of: what the description names; empty: the experiment's name.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            client.create_experiment(name, store.artifacts and f"{store.artifacts}/{name}")
        except MlflowException as error:  # another process may have created it
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    describe(client, found, purpose, of or name)
    return str(found.experiment_id)


def describe(client: "MlflowClient", experiment: "Experiment", purpose: str, of: str) -> None:
    """Set the missing tags of an experiment: its kind, its description and its shared view.

    Keeps a kind that somebody chose, and a description that somebody edited.
    """
    number, present = experiment.experiment_id, experiment.tags
    text = sign(TEXTS[purpose].format(name=of, quoted=of, table=link(number)))
    view = json.dumps({**NEWEST_FIRST, **VIEWS[purpose]})
    wanted = {KIND_TAG: present.get(KIND_TAG) or KIND, VIEW_TAG: view}
    if must_write(present.get(NOTE_TAG), text):
        wanted[NOTE_TAG] = text
    for key, value in wanted.items():
        if present.get(key) != value:
            client.set_experiment_tag(number, key, value)


def link(number: str) -> str:
    """Return the address of an experiment's shared view, relative to MLflow's pages."""
    return f"#/experiments/{number}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
