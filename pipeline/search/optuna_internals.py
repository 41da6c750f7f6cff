"""The only uses of private names of Optuna: changes to a trial that another process runs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study


def put_back(study: "Study", trial: Any) -> None:
    """Let a running trial wait again, with its number and its values. Optuna's own retry makes a trial of a new number.

    `ask` gives a waiting trial to one worker only.
    """
    from optuna.trial import TrialState

    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def set_attribute(study: "Study", trial: Any, name: str, value: Any) -> None:
    """Set an attribute of a trial of another process."""
    study._storage.set_trial_user_attr(trial._trial_id, name, value)
