"""Values are drawn from the space, with its conditions, and become the parameters of a training."""

from typing import Any

import optuna
import pytest
import yaml
from pydantic import TypeAdapter

from pipeline.errors import ParamsError
from pipeline.params import PARAMS_FILE
from pipeline.search import space
from pipeline.search.params import SweepParams
from tests.conftest import REPOSITORY

RAW = yaml.safe_load((REPOSITORY / PARAMS_FILE).read_text())
SPACE = {
    "preset": {"choices": ["mlp", "cnn"]},
    "learning_rate": {"low": 0.001, "high": 1.0, "log": True},
    "label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
    "widths": {"choices": [[64], [256, 128]], "when": {"preset": "mlp"}},
    "shift": {"low": 0, "high": 2, "when": {"network": ["cnn"]}},  # the preset's network
}


def sweep(**changes: Any) -> SweepParams:
    settings = {"sampler": "random", "pruner": "none", "seed": 3, "space": SPACE} | changes
    return TypeAdapter(SweepParams).validate_python(settings)


def draw(params: SweepParams, count: int) -> list[dict[str, Any]]:
    study, found = optuna.create_study(direction="maximize"), []
    for _ in range(count):
        trial = study.ask()
        found.append(space.suggest(trial, params, RAW))
        study.tell(trial, found[-1]["learning_rate"])
    return found


def test_conditions_decide_by_the_resolved_values_of_other_keys() -> None:
    drawn = draw(sweep(), 30)
    assert {values["preset"] for values in drawn} == {"mlp", "cnn"}
    for values in drawn:
        assert ("widths" in values) == (values["preset"] == "mlp")
        assert ("shift" in values) == (values["preset"] == "cnn")


def test_values_have_the_types_of_their_keys() -> None:
    for values in draw(sweep(), 30):
        settings = space.params_of(RAW, values).train.settings
        assert 0.001 <= settings.learning_rate <= 1
        assert settings.label_smoothing in (0, 0.05, 0.1, 0.15, 0.2)  # 3 * 0.05 is 0.15000000000000002
        assert settings.widths in ((64,), (256, 128)) if "widths" in values else settings.shift in (0, 1, 2)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_same_seed_draws_the_same_values(sampler: str) -> None:
    first = draw(sweep(sampler=sampler), 15)
    assert draw(sweep(sampler=sampler), 15) == first
    assert draw(sweep(sampler=sampler, seed=4), 15) != first


def test_a_trial_that_was_killed_between_two_values_draws_the_same() -> None:
    drawn = []
    for interrupted in (False, True):
        study, params = optuna.create_study(), sweep()
        trial = study.ask()
        if interrupted:
            keys = {key: SPACE[key] for key in ("learning_rate", "preset")}
            space.suggest(trial, sweep(space=keys), RAW)
        drawn.append(space.suggest(trial, params, RAW))
    assert drawn[0] == drawn[1]


def test_a_trial_that_waits_again_keeps_its_values() -> None:
    study, params = optuna.create_study(), sweep()
    first = space.suggest(study.ask(), params, RAW)
    again = optuna.trial.Trial(study, study.trials[0]._trial_id)
    assert space.suggest(again, params, RAW) == first


def test_a_grid_has_every_combination_once() -> None:
    axes = {name: SPACE[name] for name in ("preset", "widths", "shift")} | {"flip": {"choices": [True, False]}}
    grid = space.list_grid(sweep(sampler="grid", space=axes), RAW)
    assert len(grid) == 2 * (2 + 3)  # mlp with two widths, cnn with three shifts
    assert {"preset": "mlp", "flip": True, "widths": "[256, 128]"} in grid
    steps = space.list_grid(sweep(sampler="grid", space={"label_smoothing": SPACE["label_smoothing"]}), RAW)
    assert [values["label_smoothing"] for values in steps] == [0, 0.05, 0.1, 0.15, 0.2]


def test_values_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ParamsError, match=r"train.xla is always, but train.network is cnn"):
        space.params_of(RAW, {"preset": "cnn", "xla": "always"})
