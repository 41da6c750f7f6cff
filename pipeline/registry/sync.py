"""Synchronization of the tracking store with the outputs in a workspace, without running a stage.

DVC does not detect a deleted store, or a model from a colleague's cache that this store does not have.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.files import file_digest
from pipeline.params import PARAMS_FILE, load_params
from pipeline.registry.registration import Registration, register
from pipeline.tracking.stage_outputs import CONTRACT, EVALUATION, EXPORTED_MODEL, MODEL, QUANTIZED, TRAINING, Outputs
from pipeline.tracking.training_runs import find_or_rebuild
from pipeline.workspace import current_experiment

DESCRIBED = ("reports/validation.json", "reports/split.json", "data/splits")  # by the card, besides the model's outputs


@dataclass(frozen=True)
class Synced:
    """The records of a workspace's model in the store."""

    model: str | None = None  # SHA-256 of the model file; None: the workspace has none that is in dvc.lock
    run: str | None = None  # MLflow's id of the run that trained it
    restored: bool = False  # that run was rebuilt from outputs, now or earlier
    registration: Registration | None = None  # None: `register` did not run for it, or this is an experiment

    def tags(self) -> dict[str, str]:
        """Return tags for the flow's run. `model.sha256` is not among them, because training runs are found by it."""
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
    """Add missing records of the workspace's model, evaluation and registration, if they are those in `dvc.lock`.

    Also judges a model from an applied experiment, unless this process is part of an experiment. Skips outputs of
    another run, such as the evaluation of the previous model. Writes nothing if nothing is missing.

    Raises:
        TrackingError: the store cannot be used.
    """
    outputs = Outputs(workspace)
    locked = outputs.locked("train")
    exported = [path for path in (EXPORTED_MODEL, CONTRACT, QUANTIZED) if path in locked]  # none in an old commit
    if not outputs.are_of("train", MODEL, *exported, TRAINING):
        return Synced()
    record = find_or_rebuild(outputs)
    registration = None
    if outputs.are_of("evaluate", MODEL, EVALUATION):
        record.add_evaluation(outputs)
        # A stage that failed has deleted its outputs, and the model card describes all of them.
        is_whole = all((workspace / path).exists() for path in DESCRIBED)
        if is_whole and outputs.are_of("register", MODEL, EVALUATION) and not current_experiment():
            registration = register(record, outputs, load_params(workspace / PARAMS_FILE).register)
    return Synced(file_digest(outputs.model), record.id, "restored" in record.tags, registration)
