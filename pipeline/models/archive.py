"""The model file: a Keras archive whose bytes depend on the model alone.

Keras writes the time, and memory addresses as ids of shared objects, into every archive, so that files of equal models
differ. This module removes them. The result loads like any other `.keras` file, without code of this project.
"""

import io
import json
import shlex
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.files import atomic_file
from pipeline.models.backend import keras
from pipeline.models.contract import Ground
from pipeline.models.losses import create_accuracy, create_loss
from pipeline.models.networks import average_views, create_network
from pipeline.models.optimizers import create_stock_optimizer
from pipeline.models.tasks import Task
from pipeline.params import TrainSettings

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip archive can hold


def export(network: keras.Model, settings: TrainSettings, task: Task, steps: int, *, ground: Ground = 0) -> keras.Model:
    """Convert a trained network to the form that is saved: float32, stock layers, compiled with a stock optimizer.

    With test-time augmentation, it averages its outputs over views of the image. The optimizer is in its state before
    the first of `steps` batches: further training from the file starts a new schedule. The schedule has no warm-up,
    except for cosine decay, because Keras has none. The loss has no label smoothing.

    Args:
        ground: of the training images, for views that are moved.
    """
    stock = create_network(settings, task, network.input_shape[1:], stock=True)
    stock.set_weights(network.get_weights())
    stock = average_views(stock, settings.tta, flip=settings.flip, ground=ground)
    optimizer = create_stock_optimizer(settings, steps)
    optimizer.build(stock.trainable_variables)  # otherwise Keras warns whenever the file is loaded
    stock.compile(optimizer, create_loss(task), metrics=[create_accuracy(task)])
    return stock


def save(network: keras.Model, path: Path) -> None:
    """Write a network, its weights and its compilation as a canonical `.keras` archive."""
    with tempfile.TemporaryDirectory() as directory, atomic_file(path) as partial:
        saved = Path(directory, "model.keras")  # Keras requires the suffix
        network.save(saved)
        partial.write_bytes(_canonical(saved))


def load(path: Path) -> keras.Model:
    """Load a network from a file of `save`, compiled.

    Raises:
        ModelError: the file is missing, damaged, or not a Keras archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return keras.saving.load_model(path)
        reason = f"wrong checksum of {damaged} in it"
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", remedy="dvc repro train") from None
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
    raise ModelError(
        f"{path} is damaged",
        expected="a Keras archive",
        found=reason,
        remedy=f"rm {shlex.quote(str(path))} && dvc checkout",
    )


def _canonical(path: Path) -> bytes:
    """Return the content of an archive without the parts that change each time it is saved."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as saved, zipfile.ZipFile(content, "w") as archive:
        for name in sorted(saved.namelist()):
            data = saved.read(name)
            if name == "metadata.json":
                data = _json({"keras_version": json.loads(data)["keras_version"]})
            elif name == "config.json":
                data = _json(_renumber(json.loads(data), {}))
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED, compresslevel=1)
    return content.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _renumber(value: Any, numbers: dict[int, int]) -> Any:
    """Replace the ids of shared objects, which are memory addresses, by 1, 2, 3 in order of appearance."""
    if isinstance(value, list):
        return [_renumber(item, numbers) for item in value]
    if not isinstance(value, dict):
        return value
    renumbered = {key: _renumber(item, numbers) for key, item in value.items()}
    if isinstance(identity := value.get("shared_object_id"), int):
        renumbered["shared_object_id"] = numbers.setdefault(identity, len(numbers) + 1)
    return renumbered
