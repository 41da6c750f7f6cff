"""Enter a model that passed the gate in the registry, and say so of one that did not."""

from pipeline.files import file_digest, read_json, write_json
from pipeline.params import Params
from pipeline.stages.process import execute


def run(params: Params) -> None:
    """Register `models/model.keras` with its evaluation. A rejected model is a success of this stage.

    Raises:
        TrackingError: the tracking store cannot be used.
    """
    from pipeline.tracking.outputs import Outputs
    from pipeline.tracking.records import find_or_rebuild
    from pipeline.tracking.registry import register

    outputs = Outputs()
    gate = "passed" if read_json(outputs.evaluation / "gate.json")["passed"] else "rejected"
    record = find_or_rebuild(outputs)
    record.add_evaluation(outputs)
    registration = register(record, outputs, params.register)
    # Nothing that a registry assigns: the same model leaves the same bytes, whatever was registered before it.
    content = {"model": file_digest(outputs.model), "name": registration.name, "gate": gate}
    write_json(outputs.registration, content)
    print(registration)


if __name__ == "__main__":
    execute("register", run)
