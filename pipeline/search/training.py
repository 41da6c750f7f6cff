"""One training of a sweep: the code of the stage `train` with other parameters. Only its result is kept, not the model.

It reads the train and the validation split, and writes to `.pipeline/trainings/` of the main repository.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.files import file_digest
from pipeline.params import Params
from pipeline.search.results import Result, checkpoint, pack, read_result, write_result
from pipeline.stages.train import Preparation, prepare
from pipeline.workspace import lock, main_repository

if TYPE_CHECKING:
    import numpy as np

    from pipeline.models.backend import keras
    from pipeline.models.training import Epoch

Observer = Callable[["Epoch"], None]  # called after each epoch; an exception ends the training


def describe_machine() -> dict[str, Any]:
    """Return the properties of the machine that change the bytes of a model, as this process uses it."""
    from pipeline.models.backend import inspect_machine

    return asdict(inspect_machine())


def silence_tensorflow() -> None:
    """Suppress TensorFlow's warning that it traces a graph for each training."""
    from pipeline.models.backend import tf

    tf.get_logger().setLevel("ERROR")


def train(params: Params, key: str, observe: Observer) -> tuple[Result, bool]:
    """Train with these parameters, or return the result of the same training from before.

    The observer gets every epoch, also those of a former training and of a checkpoint, so that it may get one twice. It
    may raise TrialPruned: the epochs so far are kept, so that the same decision is made again without a training.

    Returns:
        the result, and True if nothing was trained.

    Raises:
        ModelError: the loss is not finite, or the network does not fit the images.
    """
    from pipeline.models.training import Epoch

    with lock(f"training {key}", wait=-1, remedy="", root=main_repository()):  # two trials may be the same training
        known = read_result(key)
        for record in known.history if known else ():
            observe(replace(Epoch(**record), restored=True))
        if known and known.model_sha256:
            return known, True
        return _train(params, key, observe), False


def _train(params: Params, key: str, observe: Observer) -> Result:
    from optuna import TrialPruned

    from pipeline.models import archive, training

    started = time.process_time()
    snapshots, history = checkpoint(key), []
    try:
        prepared = prepare(params)
        epochs = training.train(
            prepared.network,
            prepared.task,
            prepared.training,
            prepared.validation,
            prepared.settings,
            seed=params.train.seed,
            checkpoint=snapshots,
            class_weights=prepared.class_weights,
            ground=prepared.ground,
            strategy=prepared.strategy,
        )
        for epoch in epochs:
            history.append(epoch)
            observe(epoch)
    except (TrialPruned, ModelError):
        if history:
            write_result(key, Result([_record(epoch) for epoch in history]))
        snapshots.remove()
        raise
    replicas = prepared.strategy.num_replicas_in_sync
    _, steps = training.plan_batches(prepared.training.shape[0], prepared.settings, replicas)
    exported = archive.export(
        prepared.network, prepared.settings, prepared.task, steps * prepared.settings.epochs, ground=prepared.ground
    )
    right = pack(_find_right(exported, prepared))
    cpu_seconds = time.process_time() - started
    result = Result([_record(epoch) for epoch in history], _digest(exported), right, cpu_seconds)
    write_result(key, result)
    snapshots.remove()
    return result


def best_epoch(history: "list[Epoch]") -> "Epoch":
    """Return the epoch whose weights are kept."""
    from pipeline.models.training import find_best

    return find_best(history)


def merit(epoch: "Epoch") -> float:
    """Return the figure that a sweep maximises: validation accuracy, or with class weights balanced accuracy."""
    balanced = epoch.validation_balanced_accuracy
    return epoch.validation_accuracy if balanced is None else balanced


def epochs_of(history: Sequence[Mapping[str, Any]]) -> "list[Epoch]":
    """Return the epochs of a result."""
    from pipeline.models.training import Epoch

    return [Epoch(**record) for record in history]


def _record(epoch: "Epoch") -> dict[str, Any]:
    return {name: value for name, value in asdict(epoch).items() if name != "restored"}


def _find_right(network: "keras.Model", prepared: Preparation) -> "np.ndarray":
    """Return which validation images a network answers correctly: bool [n]."""
    import numpy as np

    from pipeline.models.inference import create_predictor

    predict, found = create_predictor(network), []
    for block in prepared.validation.blocks():
        answers = predict(block.images)
        classes = answers[:, 0] > 0.5 if prepared.task.binary else np.argmax(answers, axis=1)
        found.append(classes == prepared.task.answers(block.labels))
    return np.concatenate(found)


def _digest(network: "keras.Model") -> str:
    from pipeline.models import archive

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "model.keras")
        archive.save(network, path)
        return file_digest(path)
