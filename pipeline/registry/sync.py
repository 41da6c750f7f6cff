"""Making the tracking store agree with the outputs that stand in a workspace, without starting a stage.

DVC cannot see that a store was deleted, or that a colleague's cache brought a model which this one has never seen.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.files import file_digest
from pipeline.params import PARAMS_FILE, load_params
from pipeline.registry.registration import Registration, register
from pipeline.tracking.outputs import EVALUATION, MODEL, TRAINING, Outputs
from pipeline.tracking.records import find_or_rebuild
from pipeline.workspace import current_experiment


@dataclass(frozen=True)
class Synced:
    """What the store now has of a workspace."""

    model: str | None = None  # SHA-256 of the model file; None: the workspace has none that DVC knows
    run: str | None = None  # MLflow's id of the run that made it
    restored: bool = False  # whether that run was rebuilt from outputs, now or earlier
    registration: Registration | None = None  # None: `register` has not seen them, or this is an experiment

    def tags(self) -> dict[str, str]:
        """Tags of the flow's run. They do not include `model.sha256`, by which the run of a training is found."""
        registration = self.registration
        found = {
            "result.model": self.model,
            "result.run": self.run,
            "result.decision": registration and registration.decision.outcome,
            "result.name": registration and registration.name,
            "result.version": registration and registration.version,
        }
        return {name: value for name, value in found.items() if value}


def sync(workspace: Path) -> Synced:
    """Record what is missing of the model, the evaluation and the registration that `dvc.lock` knows.

    A model that an experiment left in the workspace is judged here, unless this process is part of an experiment.
    Outputs of another run that happen to lie beside them (an evaluation of the model before) are left alone. Where
    nothing is missing, nothing is written.

    Raises:
        TrackingError: the store cannot be used.
    """
    outputs = Outputs(workspace)
    if not outputs.are_of("train", MODEL, TRAINING):
        return Synced()
    record = find_or_rebuild(outputs)
    registration = None
    if outputs.are_of("evaluate", MODEL, EVALUATION):
        record.add_evaluation(outputs)
        if outputs.are_of("register", MODEL, EVALUATION) and not current_experiment():
            registration = register(record, outputs, load_params(workspace / PARAMS_FILE).register)
    return Synced(file_digest(outputs.model), record.id, "restored" in record.tags, registration)
