"""The values of a trial: drawn by Optuna from the space, and turned into the parameters of a training."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.params import Params, parse_params
from pipeline.search.params import Dimension, SweepParams, is_integer

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

DIGITS = 10  # of values with steps: three steps of 0.05 are 0.15, and not 0.15000000000000002


def suggest(trial: "Trial", sweep: SweepParams, sections: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the values of a trial, by key of `train`. Keys whose conditions do not hold are left out.

    Values that the trial already has, from before a kill, stay.

    Args:
        sections: the sections `train` and `presets`, as in params.yaml.
    """
    values: dict[str, Any] = {}
    for key in sweep.order():
        dimension = sweep.space[key]
        if dimension.accepts(_Resolved(values, sections)):
            trial.study.sampler = create_sampler(sweep, trial.number, key)
            values[key] = decode(dimension, _suggest(trial, key, dimension))
    return values


class _Resolved(dict[str, Any]):
    """The value of each key of `train`: drawn, set in `train`, or the preset's."""

    def __init__(self, values: Mapping[str, Any], sections: Mapping[str, Any]) -> None:
        train = {key: value for key, value in sections["train"].items() if value is not None} | dict(values)
        super().__init__(sections["presets"][train["preset"]] | train)


def _suggest(trial: "Trial", key: str, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        return trial.suggest_categorical(key, [encode(choice) for choice in dimension.choices])
    low, high, step = dimension.low, dimension.high, dimension.step
    assert low is not None
    assert high is not None
    if is_integer(key):
        return trial.suggest_int(key, int(low), int(high), log=dimension.log, step=int(step or 1))
    return trial.suggest_float(key, low, high, log=dimension.log, step=step)


def encode(choice: Any) -> Any:
    """Convert a choice to a type that Optuna stores: lists become JSON."""
    return choice if isinstance(choice, str | int | float | bool) else json.dumps(choice)


def decode(dimension: Dimension, stored: Any) -> Any:
    """Convert a value from Optuna back. Lists are tuples in the section, and lists in params.yaml."""
    if dimension.choices is None:
        return round(stored, DIGITS) if isinstance(dimension.step, float) else stored
    choice = next(choice for choice in dimension.choices if encode(choice) == stored)
    return list(choice) if isinstance(choice, tuple) else choice


def decode_all(sweep: SweepParams, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of a trial, in the order of params.yaml."""
    return {key: decode(dimension, stored[key]) for key, dimension in sweep.space.items() if key in stored}


def params_of(sections: Mapping[str, Any], values: Mapping[str, Any]) -> Params:
    """Return the parameters of a trial.

    Args:
        sections: the content of params.yaml.
        values: by key of `train`.

    Raises:
        ParamsError: the values do not fit together.
    """
    return parse_params({**sections, "train": {**sections["train"], **values}}, "the parameters of this trial")


def list_grid(sweep: SweepParams, sections: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of the space's values, as Optuna stores them, each once."""
    order = sweep.order()
    axes = [list(_list_values(key, sweep.space[key])) for key in order]
    found: dict[str, dict[str, Any]] = {}
    for combination in itertools.product(*axes):
        values: dict[str, Any] = {}
        for key, value in zip(order, combination, strict=True):
            if sweep.space[key].accepts(_Resolved({k: decode(sweep.space[k], v) for k, v in values.items()}, sections)):
                values[key] = value
        found.setdefault(json.dumps(values), values)
    return list(found.values())


def _list_values(key: str, dimension: Dimension) -> Iterator[Any]:
    if dimension.choices is not None:
        yield from map(encode, dimension.choices)
        return
    low, high, step = dimension.low, dimension.high, dimension.step or 1
    assert low is not None
    assert high is not None
    for number in range(int((high - low) / step + 1e-9) + 1):
        value = low + number * step
        yield value if is_integer(key) else round(value, DIGITS)


def create_sampler(sweep: SweepParams, number: int, key: str) -> "BaseSampler":
    """Return the sampler of a value. Its random numbers depend on the seed, the trial's number and the key alone.

    A sweep that is resumed therefore draws the same values as one that was not interrupted.
    """
    from optuna import samplers

    seed = int.from_bytes(hashlib.sha256(f"{sweep.seed} {number} {key}".encode()).digest()[:4])
    if sweep.sampler == "tpe":
        return samplers.TPESampler(seed=seed, constant_liar=True)  # values that other workers try count as poor
    return samplers.RandomSampler(seed=seed)


def create_pruner(sweep: SweepParams, *, off: bool = False) -> "BasePruner":
    """Return the pruner. `off`: one that ends no trial."""
    from optuna import pruners

    if sweep.pruner == "asha" and not off:
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return pruners.MedianPruner() if sweep.pruner == "median" and not off else pruners.NopPruner()
