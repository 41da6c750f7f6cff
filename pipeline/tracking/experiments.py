"""MLflow's experiments: create them, describe them, and choose the columns of their tables.

MLflow shows an experiment's runs with three columns that it chooses itself. A shared view chooses others: it is a tag
of the experiment, and a link with its key opens it. The description has this link.
"""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipeline.evaluation.markdown import escape
from pipeline.tracking.descriptions import must_write, sign
from pipeline.tracking.store import Store, require_client_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"  # MLflow's pages for models, not for chatbots
NOTE_TAG = "mlflow.note.content"
VIEW = "runs"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
NEWEST_FIRST = {"orderByKey": "attributes.start_time", "orderByAsc": False}

# MLflow shows the first paragraph; the rest unfolds.
TRAININGS = """\
Trainings on {name}: **[the table with accuracy, decision, data and commit]({table})**, \
[the registered models](#/models).

| column | meaning |
|---|---|
| Run Name | a training: preset, changed parameters, validation accuracy, first digits of the model's SHA-256 |
| | a `pipeline run`: decision, version, and its training; unfold it to see the training |
| `best_validation_accuracy` | accuracy on the validation images, of the kept epoch. Choose models by this one |
| `test_accuracy` | accuracy on the test images. It chooses nothing |
| `decision` | champion, challenger (waits), not promoted, or rejected (by the gate); empty: not judged |
| Dataset | the splits, with their MD5 in `dvc.lock` |
| Version | git commit of the training; uncommitted changes are in the artifact `source/changes.diff` |

To compare trainings, tick them and press Compare. To compare two versions image by image, run \
`pipeline compare champion challenger`."""

MOVES = """\
History of the aliases of [{name}](#/models/{quoted}): **[the table with author, versions and reason]({table})**.

Each run is one move. `pipeline history` prints them.

Do not delete these runs: `pipeline rollback` reads them. The run `order` has their order."""

SCORINGS = """\
Scorings by [{name}](#/models/{quoted}): **[the table with version, images, failures and drift]({table})**.

Each run predicted one folder or table of pictures."""

# By purpose: the description, and the columns of the shared view with their width.
TRAINING, HISTORY, SCORING = "training", "history", "scoring"
TEXTS = {TRAINING: TRAININGS, HISTORY: MOVES, SCORING: SCORINGS}
COLUMNS: Mapping[str, Mapping[str, int]] = {
    TRAINING: {
        "metrics.`best_validation_accuracy`": 190,
        "metrics.`test_accuracy`": 120,
        "tags.`decision`": 110,
        "attributes.`Version`": 90,
        "attributes.`Dataset`": 260,
        "attributes.`Models`": 160,
    },
    HISTORY: {
        "tags.`alias`": 100,
        "tags.`from`": 70,
        "tags.`to`": 70,
        "tags.`kind`": 110,
        "tags.`who`": 200,
        "tags.`reason`": 500,
    },
    SCORING: {
        "tags.`scored.version`": 130,
        "metrics.`pictures`": 100,
        "metrics.`failed`": 80,
        "metrics.`drift/predicted`": 130,
        "metrics.`drift/confidence`": 130,
        "tags.`input`": 400,
    },
}
ALWAYS = {"0": 73, "attributes.`Run Name`": 320, "runDateAndNestInfo": 150}  # tick box, name and time


def experiment_id(client: "MlflowClient", store: "Store", name: str, purpose: str = TRAINING, of: str = "") -> str:
    """Return the id of an experiment. Creates it if needed; safe if two processes do so at the same time.

    Args:
        purpose: a key of TEXTS.
        of: what the description names; empty: the experiment's name.

    Raises:
        WorkspaceError: its files are in S3, whose client is not installed.
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
    require_client_of(found.artifact_location)
    describe(client, found, purpose, of or name)
    return str(found.experiment_id)


def describe(client: "MlflowClient", experiment: "Experiment", purpose: str, of: str) -> None:
    """Set the missing tags of an experiment: its kind, its description and its shared view.

    Keeps a kind that somebody chose, and a description that somebody edited.
    """
    from mlflow.exceptions import MlflowException

    number, present = experiment.experiment_id, experiment.tags
    text = sign(TEXTS[purpose].format(name=escape(of), quoted=quote(of, safe=""), table=link(number)))
    widths = {**ALWAYS, **COLUMNS[purpose]}
    columns = {"selectedColumns": list(COLUMNS[purpose]), "columnOrder": list(widths), "columnWidths": widths}
    view = json.dumps({**NEWEST_FIRST, **columns})
    wanted = {KIND_TAG: present.get(KIND_TAG) or KIND, VIEW_TAG: view}
    if must_write(present.get(NOTE_TAG), text):
        wanted[NOTE_TAG] = text
    for key, value in wanted.items():
        if present.get(key) != value:
            try:
                client.set_experiment_tag(number, key, value)
            except MlflowException:  # another process may have set it at the same time
                if key not in client.get_experiment(number).tags:
                    raise


def read_link(database: Path, name: str) -> str | None:
    """Return the address of an experiment's shared view. None if the database does not have the experiment.

    Reads the database without MLflow, whose import takes seconds.
    """
    query = "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'active'"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute(query, (name,)).fetchone()
    except sqlite3.Error:
        return None
    return link(str(found[0])) if found else None


def link(number: str) -> str:
    """Return the address of an experiment's shared view, relative to MLflow's pages."""
    return f"#/experiments/{number}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
