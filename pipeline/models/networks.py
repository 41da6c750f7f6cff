"""The networks. Each takes raw uint8 [n, height, width] and answers probabilities: preprocessing is its first layer.

For 28 x 28 grey values, ten classes and the presets' widths:

| name | layers                                                                        | parameters | multiply-adds |
|------|-------------------------------------------------------------------------------|------------|---------------|
| mlp  | Flatten, a Dense(relu) for each width, Dense                                  |    101,770 |       101,632 |
| cnn  | for each width (3x3 convolution, normalised, relu) twice, halving the image   |    405,258 |    17,837,056 |
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.models.backend import keras
from pipeline.models.tasks import Task
from pipeline.params import TrainSettings

layers = keras.layers


@dataclass(frozen=True)
class Cost:
    """The size of a network."""

    parameters: int  # trained or not
    multiply_adds: int  # for one image, of its matrix products and convolutions


def create_network(
    settings: TrainSettings, task: Task, shape: tuple[int, int], precision: str = "float32"
) -> keras.Model:
    """The network that the settings name, with random weights from Keras's global seed.

    Args:
        shape: height and width of an image.
        precision: "float32" or "bfloat16", of the computation; weights and answers are float32 in both.
    """
    policy = keras.DTypePolicy("float32" if precision == "float32" else f"mixed_{precision}")
    image = keras.Input(shape, dtype="uint8", name="image")
    hidden = layers.Rescaling(1 / 255, dtype=policy, name="scale")(image)
    hidden = _BODIES[settings.network](hidden, settings.widths, policy)
    answer = layers.Dense(task.units, task.activation, dtype="float32", name="answer")(hidden)
    return keras.Model(image, answer, name=settings.network)


def measure_cost(network: keras.Model) -> Cost:
    """Count a network's parameters and the multiply-adds of its Dense and convolutional layers for one image."""
    return Cost(network.count_params(), sum(_multiply_adds(layer) for layer in network.layers))


def _mlp(hidden: Any, widths: tuple[int, ...], policy: Any) -> Any:
    hidden = layers.Flatten(dtype=policy, name="flatten")(hidden)
    for number, width in enumerate(widths, 1):
        hidden = layers.Dense(width, "relu", dtype=policy, name=f"dense_{number}")(hidden)
    return hidden


def _cnn(hidden: Any, widths: tuple[int, ...], policy: Any) -> Any:
    hidden = layers.Reshape((*hidden.shape[1:], 1), dtype=policy, name="grey")(hidden)
    for number, width in enumerate(widths, 1):
        hidden = _convolution(width, policy, f"{number}a")(hidden)
        hidden = layers.MaxPooling2D(dtype=policy, name=f"pool_{number}a")(hidden)
        hidden = _activation(policy, f"{number}a")(hidden)
        hidden = _convolution(width, policy, f"{number}b")(hidden)
        hidden = _activation(policy, f"{number}b")(hidden)
    return layers.GlobalMaxPooling2D(dtype=policy, name="pool")(hidden)


_BODIES: dict[str, Callable[[Any, tuple[int, ...], Any], Any]] = {"mlp": _mlp, "cnn": _cnn}


def _convolution(width: int, policy: Any, name: str) -> keras.layers.Layer:
    return layers.Conv2D(width, 3, padding="same", use_bias=False, dtype=policy, name=f"convolution_{name}")


def _activation(policy: Any, name: str) -> Callable[[Any], Any]:
    normalise = layers.BatchNormalization(scale=False, momentum=0.9, dtype=policy, name=f"normalise_{name}")
    activate = layers.ReLU(dtype=policy, name=f"relu_{name}")
    return lambda hidden: activate(normalise(hidden))


def _multiply_adds(layer: keras.layers.Layer) -> int:
    if isinstance(layer, keras.Model):
        return sum(_multiply_adds(inner) for inner in layer.layers)
    if not isinstance(layer, (layers.Dense, layers.Conv2D)):
        return 0
    positions = math.prod(layer.output.shape[1:-1]) if isinstance(layer, layers.Conv2D) else 1
    return positions * math.prod(layer.kernel.shape)
