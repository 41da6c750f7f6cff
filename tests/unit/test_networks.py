"""The networks: what they are made of and cost, how they start, and that the saved form equals the trained one."""

import re
from dataclasses import fields, replace

import numpy as np
import pytest
import yaml

from pipeline.errors import ModelError
from pipeline.models import networks
from pipeline.models.backend import keras
from pipeline.models.tasks import create_task
from pipeline.params import TrainSettings, parse_params
from tests.conftest import REPOSITORY

RAW = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
TASK = create_task("sparse_categorical_crossentropy", [str(label) for label in range(10)])
SHAPE = (28, 28)
IMAGES = np.random.default_rng(0).integers(0, 256, (50, *SHAPE), np.uint8)


def settings_of(preset: str) -> TrainSettings:
    own = dict.fromkeys(field.name for field in fields(TrainSettings))  # null: the preset's values
    return parse_params(RAW | {"train": RAW["train"] | own | {"preset": preset}}).train.settings


SMALL_CNN = replace(settings_of("cnn"), widths=(4, 6), whitening=3, pool_stem=False)


def test_the_mlp_is_the_introductions_network() -> None:
    network = networks.create_network(settings_of("mlp"), TASK, SHAPE)
    scale, flatten, hidden, answer = network.layers[1:]
    assert (type(scale), scale.scale) == (keras.layers.Rescaling, 1 / 255)
    assert type(flatten) is keras.layers.Flatten
    assert (type(hidden), hidden.units, hidden.activation.__name__) == (keras.layers.Dense, 128, "relu")
    assert (type(answer), answer.units, answer.activation.__name__) == (keras.layers.Dense, 10, "softmax")


@pytest.mark.parametrize("preset", RAW["presets"])
def test_the_documented_cost_of_a_preset_is_true(preset: str) -> None:
    cost = networks.measure_cost(networks.create_network(settings_of(preset), TASK, SHAPE))
    documented = re.search(rf"^\| {preset} .*\| +([\d,]+) \| +([\d,]+) \|$", networks.__doc__ or "", re.MULTILINE)
    assert documented
    assert documented.groups() == (f"{cost.parameters:,}", f"{cost.multiply_adds:,}")


def test_multiply_adds_are_those_of_every_product() -> None:
    network = networks.create_network(SMALL_CNN, TASK, SHAPE)
    whiten, first, second = 28**2 * 9 * 18, 28**2 * 9 * 18 * 4, 14**2 * 9 * 4 * 4
    third, fourth, answer = 14**2 * 9 * 4 * 6, 7**2 * 9 * 6 * 6, 6 * 10
    assert networks.measure_cost(network).multiply_adds == whiten + first + second + third + fourth + answer


def test_a_pooled_stem_leaves_the_blocks_a_quarter_of_the_pixels() -> None:
    whole, pooled = (networks.create_network(replace(SMALL_CNN, pool_stem=pool), TASK, SHAPE) for pool in (False, True))
    assert whole.get_layer("convolution_1a").output.shape[1:3] == (28, 28)
    assert pooled.get_layer("convolution_1a").output.shape[1:3] == (14, 14)
    assert pooled.count_params() == whole.count_params()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", RAW["presets"])
def test_raw_pixels_in_float32_probabilities_out(preset: str, precision: str) -> None:
    network = networks.create_network(settings_of(preset), TASK, SHAPE, precision)
    answers = network(IMAGES)
    assert network.inputs[0].dtype == "uint8"
    assert answers.numpy().dtype == np.float32
    assert np.allclose(answers.numpy().sum(axis=1), 1, atol=1e-5)
    assert {weight.dtype for weight in network.weights} == {"float32"}


def test_the_stock_network_equals_the_trained_one() -> None:
    fused = networks.create_network(SMALL_CNN, TASK, SHAPE)
    networks.whiten(fused, lambda _: IMAGES)
    for _ in range(3):
        fused(IMAGES, training=True)  # moves the statistics of the normalisation away from where they start
    stock = networks.create_network(SMALL_CNN, TASK, SHAPE, stock=True)
    stock.set_weights(fused.get_weights())
    assert any(type(layer) is networks.FusedBatchNormalization for layer in fused.layers)
    assert all(type(layer).__module__.startswith("keras.") for layer in stock.layers)
    assert [weight.path for weight in fused.weights] == [weight.path for weight in stock.weights]
    for training in (False, True):
        np.testing.assert_allclose(fused(IMAGES, training=training), stock(IMAGES, training=training), atol=1e-4)
    for moved, stock_moved in zip(fused.weights, stock.weights, strict=True):
        np.testing.assert_allclose(moved, stock_moved, rtol=1e-3, atol=1e-4, err_msg=moved.path)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_whitening_gives_patches_unit_covariance(side: int) -> None:
    smooth = (0.7 * IMAGES + 0.3 * np.roll(IMAGES, 1, axis=2)).astype(np.uint8)
    network = networks.create_network(replace(SMALL_CNN, whitening=side), TASK, SHAPE)
    networks.whiten(network, lambda _: smooth)
    layer = network.get_layer("whiten")
    whole = slice((side - 1) // 2, 28 - side // 2)  # where a patch does not reach over the edge
    both = layer(smooth[..., None].astype(np.float32) / 255).numpy()[:, whole, whole]
    whitened = both[..., : side**2]
    np.testing.assert_allclose(both[..., side**2 :], -whitened, atol=1e-4)
    values = whitened.reshape(-1, side**2)
    assert np.abs(values.mean(axis=0)).max() < 0.01
    assert np.abs(np.cov(values.T) - np.eye(side**2)).max() < 0.1
    assert not layer.trainable


def test_whitening_gives_patches_of_colours_unit_covariance() -> None:
    rng = np.random.default_rng(0)
    images = (0.5 * rng.integers(0, 256, (40, 24, 20, 1)) + 0.5 * rng.integers(0, 256, (40, 24, 20, 3))).astype(
        np.uint8
    )
    network = networks.create_network(replace(SMALL_CNN, whitening=2), TASK, (24, 20, 3))
    networks.whiten(network, lambda _: images)
    layer = network.get_layer("whiten")
    values = layer(images.astype(np.float32) / 255).numpy()[:, :-1, :-1].reshape(-1, 24)
    np.testing.assert_allclose(values[:, 12:], -values[:, :12], atol=1e-4)
    assert np.abs(np.cov(values[:, :12].T) - np.eye(12)).max() < 0.1


@pytest.mark.parametrize(("size", "most"), [((28, 28), 2000), ((64, 64), 500), ((512, 512), 128)])
def test_of_large_images_fewer_are_whitened(size: tuple[int, int], most: int) -> None:
    asked = []
    network = networks.create_network(SMALL_CNN, TASK, (*size, 3))
    networks.whiten(network, lambda count: asked.append(count) or np.zeros((2, *size, 3), np.uint8))
    assert asked == [most]


@pytest.mark.parametrize("preset", RAW["presets"])
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (40, 24, 3), (64, 64, 3)])
def test_networks_take_images_of_any_shape(preset: str, shape: tuple[int, ...]) -> None:
    network = networks.create_network(settings_of(preset), TASK, shape)
    assert network(np.zeros((2, *shape), np.uint8)).shape == (2, 10)


@pytest.mark.parametrize("ground", [255, (0, 90, 200)])
def test_moved_views_show_the_ground_at_their_edges(ground: int | tuple[int, int, int]) -> None:
    shape = (28, 28) if isinstance(ground, int) else (28, 28, 3)
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    network = networks.create_network(replace(SMALL_CNN, tta="shift"), TASK, shape, stock=True)
    up_left, down_right = np.full_like(images, ground), np.full_like(images, ground)
    up_left[:, :-1, :-1], down_right[:, 1:, 1:] = images[:, 1:, 1:], images[:, :-1, :-1]
    averaged = networks.average_views(network, "shift", flip=False, ground=ground)
    wanted = (2 * network(images).numpy() + network(up_left).numpy() + network(down_right).numpy()) / 4
    np.testing.assert_allclose(averaged(images), wanted, atol=1e-6)


@pytest.mark.parametrize(("widths", "whitening"), [((4, 4, 4, 4), 2), ((4,), 5)])
def test_images_too_small_for_the_network_are_refused(widths: tuple[int, ...], whitening: int) -> None:
    settings = replace(SMALL_CNN, widths=widths, whitening=whitening, pool_stem=False)
    least = max(2 ** len(widths), whitening)
    networks.create_network(settings, TASK, (least, least))
    with pytest.raises(ModelError, match=f"at least {least} x {least} pixels"):
        networks.create_network(settings, TASK, (least - 1, 28))


def test_convolutions_start_by_passing_channels_on() -> None:
    layer = networks.create_network(SMALL_CNN, TASK, SHAPE).get_layer("convolution_2b")
    inputs = np.random.default_rng(1).normal(size=(1, 5, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(layer(inputs), inputs, atol=1e-6)


def test_answers_are_averaged_over_views() -> None:
    settings = replace(SMALL_CNN, tta="shift", flip=True)
    network = networks.create_network(settings, TASK, SHAPE, stock=True)
    up_left, down_right = np.zeros_like(IMAGES), np.zeros_like(IMAGES)
    up_left[:, :-1, :-1], down_right[:, 1:, 1:] = IMAGES[:, 1:, 1:], IMAGES[:, :-1, :-1]

    def answer(images: np.ndarray) -> np.ndarray:
        return network(images).numpy()

    def shifted(mirror: int) -> np.ndarray:
        return (
            2 * answer(IMAGES[:, :, ::mirror]) + answer(up_left[:, :, ::mirror]) + answer(down_right[:, :, ::mirror])
        ) / 4

    averaged = networks.average_views(network, settings.tta, flip=settings.flip)
    np.testing.assert_allclose(averaged(IMAGES), (shifted(1) + shifted(-1)) / 2, atol=1e-6)
    unmirrored = networks.average_views(network, settings.tta, flip=False)
    np.testing.assert_allclose(unmirrored(IMAGES), shifted(1), atol=1e-6)
    mirrored = networks.average_views(network, "flip", flip=settings.flip)
    np.testing.assert_allclose(mirrored(IMAGES), (answer(IMAGES) + answer(IMAGES[:, :, ::-1])) / 2, atol=1e-6)
    assert networks.average_views(network, "none", flip=settings.flip) is network
