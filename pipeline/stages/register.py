"""Enter a model that passed the gate in the registry, and say so of one that did not."""

from pipeline.params import Params
from pipeline.stages.process import execute


def run(params: Params) -> None:
    """Register `models/model.keras` with its evaluation. A rejected model is a success of this stage.

    Raises:
        TrackingError: the tracking store cannot be used.
    """
    from pipeline.tracking.outputs import Outputs
    from pipeline.tracking.records import find_or_rebuild
    from pipeline.tracking.registry import register, write_registration

    outputs = Outputs()
    record = find_or_rebuild(outputs)
    record.add_evaluation(outputs)
    registration = register(record, outputs, params.register)
    write_registration(outputs)
    print(registration)


if __name__ == "__main__":
    execute("register", run)
