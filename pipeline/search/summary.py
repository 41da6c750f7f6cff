"""The trials of a sweep as rows, and its result: the best trial, those within noise of it, and the cost."""

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.comparison import mcnemar_p_value
from pipeline.search.claims import REASON, TRIALS, is_lost
from pipeline.search.params import SweepParams
from pipeline.search.results import unpack
from pipeline.search.space import decode_all
from pipeline.search.store import get_all
from pipeline.search.worker import FACTS, SEED

if TYPE_CHECKING:
    from optuna import Study

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
NOISE_LEVEL = 0.05  # a trial is within noise of the best if McNemar's p-value is not below
CONFIRMS = "confirms"  # attribute of a trial that confirms another: that one's number


@dataclass(frozen=True)
class Row:
    """A trial."""

    number: int
    params: dict[str, Any]
    state: str  # of STATES
    validation_accuracy: float | None  # of the best epoch so far
    value: float | None  # what the sweep maximises; with class weights, the balanced accuracy. None: not complete
    epoch: int | None  # the last one
    seconds: float | None
    cpu_seconds: float
    reused: bool
    model_sha256: str | None
    reason: str | None  # why it failed
    seed: int | None = None  # of a trial that confirms another
    confirms: int | None = None
    right: str = ""  # by `results.pack`

    def describe(self) -> dict[str, Any]:
        """Return plain values for programs."""
        return {name: value for name, value in vars(self).items() if name != "right"}


@dataclass(frozen=True)
class Confirmation:
    """Results of a candidate with other seeds.

    The seed of the search is not among them: its value is the highest of many, and therefore too high.
    """

    number: int  # of the trial
    values: tuple[float, ...]  # what the sweep maximises, by seed

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation. None: of one seed."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Summary:
    """A sweep and its result so far."""

    name: str
    planned: int
    rows: tuple[Row, ...]
    within_noise: tuple[Row, ...]  # the best of the search first; empty: no trial is complete
    confirmations: tuple[Confirmation, ...]  # the best first; only candidates whose seeds are all complete
    confirming: tuple[Row, ...]

    @property
    def best(self) -> Row | None:
        """The best trial: by its mean over other seeds if there are confirmations, else by the seed of the search."""
        if self.confirmations:
            return self.rows[self.confirmations[0].number]
        return self.within_noise[0] if self.within_noise else None

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all trials. That of killed attempts is not known."""
        return sum(row.cpu_seconds for row in (*self.rows, *self.confirming))

    def count(self, state: str) -> int:
        """Return the number of trials in a state."""
        return sum(row.state == state for row in self.rows)

    def describe(self) -> dict[str, Any]:
        """Return plain values for programs."""
        return {
            "name": self.name,
            "planned": self.planned,
            "best": self.best.number if self.best else None,
            "within_noise": [row.number for row in self.within_noise],
            "confirmations": [
                {"number": one.number, "values": list(one.values), "mean": one.mean, "deviation": one.deviation}
                for one in self.confirmations
            ],
            "cpu_seconds": self.cpu_seconds,
            "trials": [row.describe() for row in self.rows],
        }


def summarise(study: "Study", confirming: "Study | None") -> Summary:
    """Read a sweep, and its confirmation if there is one."""
    sweep = sweep_of(study)
    rows = tuple(read_rows(study, sweep))
    more = tuple(read_rows(confirming, sweep)) if confirming else ()
    within_noise = find_within_noise(rows)
    planned = max(study.user_attrs.get(TRIALS, 0), len(rows))
    return Summary(study.study_name, planned, rows, within_noise, find_confirmations(more), more)


def read_rows(study: "Study", sweep: SweepParams) -> list[Row]:
    """Return the trials of a study, by number."""
    return [_read_row(trial, sweep) for trial in get_all(study)]


def find_within_noise(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Return the best complete trial, and those that McNemar's test does not tell from it, in the order of their value.

    The test is of the answers to the same validation images, each of which counts once, also with class weights. The
    best of many trials was also lucky, so that a trial outside may be as good; one within is not shown to be.
    """
    complete = sorted((row for row in rows if row.value is not None), key=lambda row: (-(row.value or 0), row.number))
    if not complete:
        return ()
    best = unpack(complete[0].right)
    found = [complete[0]]
    for row in complete[1:]:
        right = unpack(row.right)
        if mcnemar_p_value(int((right & ~best).sum()), int((best & ~right).sum())) >= NOISE_LEVEL:
            found.append(row)
    return tuple(found)


def find_confirmations(more: tuple[Row, ...]) -> tuple[Confirmation, ...]:
    """Return the candidates whose other seeds are all complete, the best first. more: the trials that confirm."""
    found = []
    for number in sorted({row.confirms for row in more if row.confirms is not None}):
        values = [row.value for row in more if row.confirms == number]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            found.append(Confirmation(number, tuple(known)))
    return tuple(sorted(found, key=lambda one: (-one.mean, one.number)))


def sweep_of(study: "Study") -> SweepParams:
    """Return the section `sweep` that a study was started with."""
    from pipeline.search.claims import DEFINITION
    from pipeline.search.definition import read_definition

    return read_definition(study.user_attrs[DEFINITION]).sweep


def _read_row(trial: Any, sweep: SweepParams) -> Row:
    attributes = trial.user_attrs
    facts = attributes.get(FACTS, {})
    reached = max(trial.intermediate_values.values(), default=None)
    state = STATES[trial.state.name]
    if state == "running" and is_lost(trial):
        state = "waiting"  # for a worker that takes it up
    return Row(
        number=trial.number,
        params=decode_all(sweep, trial.params or trial.system_attrs.get("fixed_params", {})),
        state=state,
        validation_accuracy=facts.get("validation_accuracy", reached),
        value=trial.value if state == "complete" else None,
        epoch=trial.last_step,
        seconds=facts.get("seconds"),
        cpu_seconds=facts.get("cpu_seconds", 0.0),
        reused=bool(facts.get("reused")),
        model_sha256=facts.get("model_sha256"),
        reason=attributes.get(REASON),
        seed=attributes.get(SEED),
        confirms=attributes.get(CONFIRMS),
        right=facts.get("right", ""),
    )
