"""The section `sweep` of params.yaml."""

import dataclasses
import graphlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.params import Bool, Float, Int, Section, TrainParams, TrainSettings

OF_TRAIN = ("preset", "loss", "class_weights")  # keys of `train` besides its settings that a sweep may choose


@dataclass(frozen=True, kw_only=True)
class Dimension(Section):
    """The values of one key that a sweep may choose: a range, or a list."""

    low: Int | Float | None = Field(default=None, description="lowest value of a range")
    high: Int | Float | None = Field(default=None, description="highest value of a range")
    log: Bool = Field(default=False, description="draw from the range on a logarithmic scale")
    step: Annotated[Int | Float, Field(gt=0)] | None = Field(default=None, description="distance between its values")
    choices: tuple[Any, ...] | None = Field(default=None, min_length=1, description="the values, instead of a range")
    when: Mapping[str, Any] = Field(
        default_factory=dict,
        description="other keys of `train` and their value, or a list of values, for which this key is searched",
    )

    def accepts(self, other: Mapping[str, Any]) -> bool:
        """Return True if the conditions in `when` hold. `other`: the values of the other keys."""
        return all(
            other[key] in wanted if isinstance(wanted, list | tuple) else other[key] == wanted
            for key, wanted in self.when.items()
        )


@dataclass(frozen=True, kw_only=True)
class SweepParams(Section):
    """What `pipeline sweep` searches, and how."""

    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe",
        description="tpe: learns from finished trials; grid: every combination of listed and stepped values, in order",
    )
    pruner: Literal["asha", "median", "none"] = Field(
        default="asha",
        description="ends a trial early. asha: not in the best third at epoch 1, 3, 9, …; median: below the median",
    )
    seed: Int = Field(default=1, ge=0, lt=2**32, description="of the sampler; the seed of the trainings is train.seed")
    space: Mapping[str, Dimension] = Field(default_factory=dict, description="keys of `train`, and the values to try")

    def find_conflicts(self) -> list[str]:
        """Describe values that are valid each but do not fit together, or do not fit the keys of `train`."""
        problems = [problem for key in self.space for problem in self._check(key)]
        if not problems:
            try:
                self.order()
            except graphlib.CycleError as error:
                problems.append(f"the conditions of sweep.space form a circle: {', '.join(sorted(set(error.args[1])))}")
        return problems

    def order(self) -> list[str]:
        """Return the keys of the space, each after the keys in its conditions.

        Raises:
            graphlib.CycleError: conditions depend on each other.
        """
        sorter = graphlib.TopologicalSorter({key: sorted(self.space[key].when) for key in sorted(self.space)})
        return [key for key in sorter.static_order() if key in self.space]

    def _check(self, key: str) -> list[str]:
        dimension, name = self.space[key], f"sweep.space.{key}"
        if unknown := {key, *dimension.when} - searchable().keys():
            return [f"{name}: {', '.join(sorted(unknown))} cannot be searched. Expected {', '.join(searchable())}"]
        problems = [
            problem
            for other, wanted in dimension.when.items()
            for value in (wanted if isinstance(wanted, list | tuple) else [wanted])
            for problem in _check_value(other, value, f"{name}.when")
        ]
        ends = (dimension.low, dimension.high)
        if dimension.choices is not None:
            if any(value is not None for value in (*ends, dimension.step)) or dimension.log:
                problems.append(f"{name} has choices and a range: keep one of them")
            return problems + [problem for value in dimension.choices for problem in _check_value(key, value, name)]
        if None in ends:
            return [*problems, f"{name} needs low and high, or choices"]
        if not is_integer(key) and _json_type(key) != "number":
            return [*problems, f"{name} is a range, but train.{key} is not a number: list its values under choices"]
        problems += [problem for value in ends for problem in _check_value(key, value, name)]
        return problems or list(self._check_range(name, dimension, integer=is_integer(key)))

    def _check_range(self, name: str, dimension: Dimension, *, integer: bool) -> Iterator[str]:
        low, high, step = dimension.low, dimension.high, dimension.step
        assert low is not None
        assert high is not None
        if low > high:
            yield f"{name}.low is {low:g}, above high, {high:g}"
        if dimension.log and low <= 0:
            yield f"{name}.low is {low:g}: a logarithmic scale needs a positive value"
        if dimension.log and step is not None:
            yield f"{name} has log and step: keep one of them"
        if integer and isinstance(step, float):
            yield f"{name}.step is {step}, but {name.rpartition('.')[2]} is an integer"
        if self.sampler == "grid" and (dimension.log or (step is None and not integer)):
            yield f"{name} is a range without steps, which sweep.sampler grid cannot list: add step, or choices"


@cache
def searchable() -> dict[str, Any]:
    """Return the type of each key of `train` that a sweep may choose, with its limits."""
    found = {}
    for kind, names in ((TrainSettings, None), (TrainParams, OF_TRAIN)):
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            if names is None or field.name in names:
                found[field.name] = Annotated[hints[field.name], field.default]
    return found


def is_integer(key: str) -> bool:
    """Return True if a key of `train` is an integer."""
    return _json_type(key) == "integer"


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    return TypeAdapter(searchable()[key])


def _json_type(key: str) -> Any:
    return _adapter(key).json_schema().get("type")


def _check_value(key: str, value: Any, name: str) -> list[str]:
    """Describe why a value, part of `name`, is not one of a key of `train`. Empty if it is."""
    try:
        _adapter(key).validate_python(value)
    except ValidationError as error:
        detail = error.errors()[0]["msg"]
        return [f"{name} contains {value!r}, which train.{key} cannot be: {detail[:1].lower()}{detail[1:]}"]
    return []
