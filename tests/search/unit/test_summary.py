"""The result of a sweep: the best, those within noise of it, and its confirmations."""

import sys
from typing import Any

import numpy as np
import pytest

from pipeline.errors import WorkspaceError
from pipeline.search import store, summary
from pipeline.search.progress import describe_result
from pipeline.search.results import pack

IMAGES = 6000


def row(number: int, wrong: range, **others: Any) -> summary.Row:
    """A complete trial that is wrong on these images."""
    right = np.ones(IMAGES, bool)
    right[wrong] = False
    accuracy = float(right.mean())
    fields = {"params": {}, "state": "complete", "validation_accuracy": accuracy, "value": accuracy, "epoch": 3}
    fields |= {"seconds": 1.0, "cpu_seconds": 2.0, "reused": False, "model_sha256": "", "reason": None}
    return summary.Row(**fields | {"number": number, "right": pack(right)} | others)


def test_trials_that_differ_on_few_images_are_within_noise() -> None:
    best, close, far = row(1, range(600)), row(0, range(610, 1230)), row(2, range(720))
    # 600 against 620 wrong images of which none is shared is noise; 120 more wrong ones besides the same are not.
    pruned = row(3, range(10), state="pruned", value=None)
    assert summary.find_within_noise((close, best, far, pruned)) == (best, close)
    assert summary.find_within_noise((pruned,)) == ()


def test_the_confirmed_mean_decides() -> None:
    rows = (row(0, range(600)), row(1, range(610)))
    more = tuple(
        row(number, range(wrong), confirms=trial, seed=seed)
        for number, (trial, seed, wrong) in enumerate([(0, 2, 700), (0, 3, 640), (1, 2, 600), (1, 3, 590)])
    )
    confirmations = summary.find_confirmations(more)
    assert [one.number for one in confirmations] == [1, 0]
    assert confirmations[0].mean == pytest.approx(1 - 595 / IMAGES)  # without the seed of the search
    found = summary.Summary("some", 2, rows, summary.find_within_noise(rows), confirmations, more)
    assert found.best == rows[1]
    assert found.cpu_seconds == 12
    assert describe_result(found)[0].startswith("best: trial 1")
    unfinished = (*more, row(4, range(1), confirms=1, seed=4, state="running", value=None))
    assert [one.number for one in summary.find_confirmations(unfinished)] == [0]


def test_without_optuna_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # Python's way to block an import
    with pytest.raises(WorkspaceError, match="make extras"):
        store.require_optuna()
