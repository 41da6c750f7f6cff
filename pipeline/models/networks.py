"""The networks. Each takes raw uint8 images and returns probabilities; scaling is its first layer.

Images are [n, height, width] if grey, and [n, height, width, 3] in colour.

`NETWORKS` lists them. For 28 x 28 grey pixels, ten classes and the widths of the presets:

| preset    | layers                                                                      | parameters | multiply-adds |
|-----------|-----------------------------------------------------------------------------|------------|---------------|
| mlp       | Flatten; a Dense(relu) for each width; Dense                                |    101,770 |       101,632 |
| cnn       | whitening; max-pooling; two convolutions, max-pooling for each width; Dense |    271,038 |     8,906,528 |
| cnn-large | the same without the first max-pooling                                      |    386,046 |    22,228,256 |
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.models.backend import keras, tf
from pipeline.models.contract import Ground
from pipeline.models.tasks import Task
from pipeline.params import TrainSettings

layers, ops = keras.layers, keras.ops

Builder = Callable[[Any, TrainSettings, keras.DTypePolicy, bool], Any]  # see NETWORKS

MOST_SAMPLED, LEAST_SAMPLED = 2000, 128  # images of a sample, which is enough for the covariance of a few pixels
BLOCK_VALUES = 2**23  # float64 values of patches in memory at once
WHITENING_EPSILON = 1e-3  # added to the variances (of pixels from 0 to 1), because the weakest components are noise


@dataclass(frozen=True)
class Cost:
    """The size of a network."""

    parameters: int  # including those that are not trained
    multiply_adds: int  # for one image, of matrix products and convolutions


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer as one fused operation of TensorFlow instead of twelve: a third of the time on a CPU.

    It is used for training only. The stock layer, which has the same weights, replaces it in the model file.
    """

    def call(self, inputs: Any, training: bool = False, mask: None = None) -> Any:
        """Normalise float32 or bfloat16 [n, height, width, channels]."""
        normalised, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.ones_like(self.beta),
            offset=self.beta,
            mean=self.moving_mean,
            variance=self.moving_variance,
            epsilon=self.epsilon,
            exponential_avg_factor=1 - self.momentum,
            is_training=training,
        )
        if training:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return normalised


def create_network(
    settings: TrainSettings, task: Task, shape: tuple[int, ...], precision: str = "float32", *, stock: bool = False
) -> keras.Model:
    """Create the network of the settings, with random weights from Keras's global seed.

    Args:
        shape: of an image: (height, width), or (height, width, 3) in colour.
        precision: "float32" or "bfloat16", of the computation. Weights and outputs are always float32.
        stock: use only Keras's own layers, not faster ones for training. The weights are the same.

    Raises:
        ModelError: the images are too small for the network.
    """
    policy = keras.DTypePolicy("float32" if precision == "float32" else f"mixed_{precision}")
    image = keras.Input(shape, dtype="uint8", name="image")
    hidden = layers.Rescaling(1 / 255, dtype=policy, name="scale")(image)
    hidden = NETWORKS[settings.network](hidden, settings, policy, stock)
    answer = layers.Dense(task.units, task.activation, dtype="float32", name="answer")(hidden)
    network = keras.Model(image, answer, name=settings.network)
    if settings.network == "cnn":
        _start_as_identity(network)
    return network


def sample_size(shape: Sequence[int]) -> int:
    """Return the number of images for statistics of their pixels. Of large images, fewer are enough."""
    return min(MOST_SAMPLED, max(LEAST_SAMPLED, MOST_SAMPLED * 32**2 // math.prod(shape[:2])))


def whiten(network: keras.Model, sample: Callable[[int], np.ndarray]) -> None:
    """Set the weights of a network's frozen first convolution from training images. Does nothing without that layer.

    The filters are the principal components of image patches, scaled to unit variance, each with both signs, so that
    the relu after it loses no information (arXiv:2404.00498, section 3.2).

    Args:
        sample: returns at most the given number of images, uint8 [n, height, width] or [n, height, width, 3].
    """
    layer = next((layer for layer in network.layers if layer.name == "whiten"), None)
    if layer is None:
        return
    images = sample(sample_size(network.input_shape[1:]))
    count, total, products = _sum_patches(images, layer.kernel_size[0])
    mean = total / count / 255
    covariance = products / count / 255**2 - np.outer(mean, mean)
    variances, components = np.linalg.eigh(covariance)
    filters = components / np.sqrt(variances + WHITENING_EPSILON)
    kernel = np.concatenate([filters, -filters], axis=1)
    layer.set_weights([kernel.reshape(layer.kernel.shape), -mean @ kernel])


def _sum_patches(images: np.ndarray, side: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Sum up the square patches of images.

    Returns:
        the number of patches, their sum float64 [m] and that of their outer products [m, m], where m is side * side *
        channels. Exact in any order of summation: sums of integers below 2**53.
    """
    images = images[..., None] if images.ndim == 3 else images
    size = side * side * images.shape[-1]
    block = max(1, BLOCK_VALUES // (math.prod(images.shape[1:3]) * size))
    count, total, products = 0, np.zeros(size), np.zeros((size, size))
    for first in range(0, len(images), block):
        windows = np.lib.stride_tricks.sliding_window_view(images[first : first + block], (side, side), axis=(1, 2))
        patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size).astype(np.float64)
        count += len(patches)
        total += patches.sum(axis=0)
        products += patches.T @ patches
    return count, total, products


def average_views(network: keras.Model, tta: str, *, flip: bool, ground: Ground = 0) -> keras.Model:
    """Return a network that averages the outputs for several views of each image: test-time augmentation.

    The views are the image and, with `tta` "shift", the image moved by one pixel up and left, and down and right. A
    view that is not moved has double weight (arXiv:2404.00498, section 3.5). With `tta` "none", returns the given
    network.

    Args:
        flip: training mirrored images; each view is also mirrored.
        ground: value of the pixels that enter at the edges of a moved image.
    """
    image = keras.Input(network.input_shape[1:], dtype="uint8", name="image")
    weighted = [(image, 1)]
    if tta == "shift":
        weighted = [(image, 2), *((view, 1) for view in _shift_views(image, ground))]
    if tta != "none" and flip:
        weighted += [(ops.flip(view, axis=2), weight) for view, weight in weighted]
    if len(weighted) == 1:
        return network
    answers = [answer for view, weight in weighted for answer in [network(view)] * weight]  # each view is computed once
    average = layers.Average(name="average")(answers)
    return keras.Model(image, average, name=f"{network.name}_views")


def _shift_views(image: Any, ground: Ground) -> list[Any]:
    """Move images by one pixel up and left, and down and right."""
    values = ops.cast(image, "float32")  # LiteRT cannot pad uint8
    if fills_with_ground := bool(np.any(ground)):  # padding is with zeros, which stand for the ground
        values = layers.Rescaling(1.0, np.negative(ground).tolist())(values)
    views = []
    for padding, kept in (([0, 1], slice(1, None)), ([1, 0], slice(-1))):
        moved = ops.pad(values, [[0, 0], padding, padding, [0, 0]][: len(image.shape)])[:, kept, kept]
        moved = layers.Rescaling(1.0, np.array(ground).tolist())(moved) if fills_with_ground else moved
        views.append(ops.cast(moved, "uint8"))
    return views


def rebuild_views(network: keras.Model, tta: str, *, flip: bool) -> keras.Model:
    """Average the views of a saved network as today. Release 0.1.0 padded uint8, which LiteRT cannot.

    Returns the given network if it has no views.
    """
    inner = next((layer for layer in network.layers if isinstance(layer, keras.Model)), None)
    return network if inner is None else average_views(inner, tta, flip=flip)


def measure_cost(network: keras.Model) -> Cost:
    """Count a network's parameters and the multiply-adds of its Dense and convolutional layers for one image."""
    return Cost(network.count_params(), sum(_multiply_adds(layer) for layer in network.layers))


def _require_size(settings: TrainSettings, shape: tuple[int, int]) -> None:
    """Refuse images that are too small for the cnn's max-poolings or whitened patches."""
    halvings = len(settings.widths) + settings.pool_stem
    least = max(2**halvings, settings.whitening)
    if min(shape) < least:
        raise ModelError(
            "the images are too small for the network",
            expected=f"at least {least} x {least} pixels, for train.whitening {settings.whitening} and {halvings} "
            "max-poolings, one for each of train.widths and one for train.pool_stem",
            found=f"{shape[0]} x {shape[1]}",
            remedy="fewer train.widths, or train.pool_stem: false",
        )


def _mlp(hidden: Any, settings: TrainSettings, policy: Any, stock: bool) -> Any:
    """The network of an introduction: Flatten, and a Dense(relu) for each width."""
    hidden = layers.Flatten(dtype=policy, name="flatten")(hidden)
    for number, width in enumerate(settings.widths, 1):
        hidden = layers.Dense(width, "relu", dtype=policy, name=f"dense_{number}")(hidden)
    return hidden


def _cnn(hidden: Any, settings: TrainSettings, policy: Any, stock: bool) -> Any:
    """The network of arXiv:2404.00498 (airbench) with relu."""
    _require_size(settings, hidden.shape[1:3])
    normalisation = layers.BatchNormalization if stock else FusedBatchNormalization

    def convolve(hidden: Any, channels: int, side: int, name: str, **options: Any) -> Any:
        return layers.Conv2D(channels, side, padding="same", dtype=policy, name=name, **options)(hidden)

    def activate(hidden: Any, name: str) -> Any:
        hidden = normalisation(scale=False, momentum=0.9, dtype=policy, name=f"normalise_{name}")(hidden)
        return layers.ReLU(dtype=policy, name=f"relu_{name}")(hidden)

    if len(hidden.shape) == 3:
        hidden = layers.Reshape((*hidden.shape[1:], 1), dtype=policy, name="grey")(hidden)
    if side := settings.whitening:
        hidden = convolve(hidden, 2 * side**2 * hidden.shape[-1], side, "whiten", trainable=False)
        hidden = layers.ReLU(dtype=policy, name="relu_whiten")(hidden)
    if settings.pool_stem:
        hidden = layers.MaxPooling2D(dtype=policy, name="pool_stem")(hidden)
    for block, width in enumerate(settings.widths, 1):
        hidden = convolve(hidden, width, 3, f"convolution_{block}a", use_bias=False)
        hidden = layers.MaxPooling2D(dtype=policy, name=f"pool_{block}")(hidden)
        hidden = activate(hidden, f"{block}a")
        hidden = convolve(hidden, width, 3, f"convolution_{block}b", use_bias=False)
        hidden = activate(hidden, f"{block}b")
    return layers.GlobalMaxPooling2D(dtype=policy, name="pool")(hidden)


def _start_as_identity(network: keras.Model) -> None:
    """Initialise each trained convolution to pass its first channels on unchanged (arXiv:2404.00498, section 3.1)."""
    for layer in network.layers:
        if isinstance(layer, layers.Conv2D) and layer.trainable:
            kernel = layer.kernel.numpy()
            side, _, inputs, outputs = kernel.shape
            same = min(inputs, outputs)
            kernel[..., :same] = 0
            kernel[side // 2, side // 2, range(same), range(same)] = 1
            layer.kernel.assign(kernel)


def _multiply_adds(layer: keras.layers.Layer) -> int:
    if isinstance(layer, layers.Conv2D):
        return math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
    return math.prod(layer.kernel.shape) if isinstance(layer, layers.Dense) else 0


# Each takes images float [n, *shape] from 0 to 1 and returns features [n, m] for the output layer. With `stock`
# it uses only Keras's own layers: the model file needs no code of this project.
NETWORKS: dict[str, Builder] = {"mlp": _mlp, "cnn": _cnn}
