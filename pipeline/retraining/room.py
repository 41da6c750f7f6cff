"""Description of the room `retraining` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    section=("retrain", "pipeline.retraining.params:RetrainParams"),
    flows={"retrain": "pipeline.retraining.flow:retrain"},
    files=(
        ".github/workflows/retrain.yml",
        "docs/images/how-retraining.svg",
        "docs/retraining.md",
    ),
)
