"""Train the network on the train split and keep the epoch that is best on the validation split."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.data import table
from pipeline.params import Params
from pipeline.stages.process import execute
from pipeline.workspace import STATE, lock, main_repository

TRAIN, VALIDATION = Path("data/splits/train.parquet"), Path("data/splits/validation.parquet")
MODEL, REPORT = Path("models/model.keras"), Path("reports/training")
PINS = Path("pins.txt")
LOCK_WAIT_SECONDS = 15


def run(params: Params) -> None:
    """Write the model file and the report of its training, which MLflow follows epoch by epoch."""
    # Imported here, so that `execute` watches over the process during the seconds that this takes.
    from pipeline.models import archive, backend, networks, tasks, training
    from pipeline.models.checkpoints import Checkpoint
    from pipeline.reports.training import write_training
    from pipeline.tracking.runs import TrainingFacts, training_run

    dataset, seed = table.read_dataset(TRAIN), params.train.seed
    settings = replace(params.train.settings, flip=params.train.settings.flip and dataset.flip)
    examples, validation = (training.Examples(*table.read_images(path)) for path in (TRAIN, VALIDATION))
    task = tasks.create_task(params.train.loss, dataset.classes, params.dataset.positive_classes)
    machine = backend.inspect_machine()
    precision = backend.choose_precision(settings.precision, machine)
    backend.make_repeatable(seed)
    network = networks.create_network(settings, task, (dataset.height, dataset.width), precision)
    networks.whiten(network, examples.images)
    cost = networks.measure_cost(network)

    resolved = {"preset": params.train.preset, "seed": seed, "loss": task.loss, "classes": task.classes}
    resolved |= asdict(settings) | asdict(cost)
    # What the bits depend on beside params and data. It differs between machines, so it stays out of the outputs.
    local = asdict(machine) | {"computed_in": precision}
    print(f"{len(examples.labels):,} images of {', '.join(task.classes)}; {len(validation.labels):,} to validate on")
    print(f"{settings.network}: {cost.parameters:,} parameters, {cost.multiply_adds:,} multiply-adds an image")
    print(f"{precision} on {machine.device}, {machine.threads} threads", flush=True)

    facts = TrainingFacts(dataset.name, resolved, {"train": TRAIN, "validation": VALIDATION}, local)
    with _checkpoint_file(resolved | local) as file, training_run(facts) as tracked:
        checkpoint, history = Checkpoint(file), []
        for epoch in training.train(network, task, examples, validation, settings, seed=seed, checkpoint=checkpoint):
            history.append(epoch)
            tracked.log_epoch(epoch.epoch, epoch.metrics())
            print(_describe(epoch, settings.epochs, len(examples.labels)), flush=True)
        best = training.find_best(history)
        print(f"best on validation: epoch {best.epoch}, accuracy {best.validation_accuracy:.4f}", flush=True)
        _, steps = training.plan_batches(len(examples.labels), settings)
        archive.save(archive.export(network, settings, task, steps * settings.epochs), MODEL)
        write_training(REPORT, [asdict(epoch) for epoch in history], resolved | {"best_epoch": best.epoch})
        tracked.complete(MODEL, REPORT.parent)
        checkpoint.remove()


@contextmanager
def _checkpoint_file(determinants: Mapping[str, Any]) -> Iterator[Path]:
    """Where the checkpoint of this training is, held against a second process that runs the same training.

    The main repository keeps it, out of the reach of DVC, which deletes a stage's outputs before it runs.
    """
    import pipeline.models
    from pipeline.models.checkpoints import derive_key

    code = [*sorted(Path(pipeline.models.__path__[0]).glob("*.py")), Path(__file__), PINS]
    key = derive_key(determinants, [*code, TRAIN, VALIDATION])
    root = main_repository()
    remedy = "it is the same training: wait for it, then run the same command again"
    with lock(f"training {key}", wait=LOCK_WAIT_SECONDS, remedy=remedy, root=root):
        yield root / STATE / "checkpoints" / f"{key}.npz"


def _describe(epoch: Any, epochs: int, images: int) -> str:
    """One line on an epoch that has ended."""
    left = (epochs - epoch.epoch) * images / epoch.images_per_second
    pace = "from checkpoint" if epoch.restored else f"{epoch.images_per_second:9,.0f} images/s"
    return (
        f"epoch {epoch.epoch:{len(str(epochs))}}/{epochs}  {pace:>18}  loss {epoch.loss:.4f}  "
        f"validation accuracy {epoch.validation_accuracy:.4f}  {left // 60:.0f}:{left % 60:02.0f} left"
    )


if __name__ == "__main__":
    execute("train", run)
