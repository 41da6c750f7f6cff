"""Schedules against their formulas, Muon for convolutions, and what of them the model file carries."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.models.backend import keras
from pipeline.models.optimizers import create_optimizer, create_stock_optimizer
from pipeline.params import load_params
from tests.conftest import REPOSITORY

SETTINGS = replace(
    load_params(REPOSITORY / "params.yaml").train.settings,
    optimizer="adam",
    learning_rate=0.5,
    schedule="linear",
    warmup_fraction=0.0,
    weight_decay=0.0,
    weight_average=0.0,
)


def rates(optimizer: keras.optimizers.Optimizer, steps: int) -> list[float]:
    found = []
    for step in range(steps):
        optimizer.iterations.assign(step)
        found.append(float(optimizer.learning_rate))
    return found


def test_a_linear_schedule_falls_to_zero() -> None:
    assert rates(create_optimizer(SETTINGS, 4), 5) == pytest.approx([0.5, 0.375, 0.25, 0.125, 0])


def test_a_warm_up_rises_to_the_schedules_first_value() -> None:
    warming = replace(SETTINGS, warmup_fraction=0.5)
    assert rates(create_optimizer(warming, 6), 7) == pytest.approx([1 / 8, 2 / 8, 3 / 8, 1 / 2, 1 / 3, 1 / 6, 0])
    constant = replace(warming, schedule="constant")
    assert rates(create_optimizer(constant, 6), 7) == pytest.approx([1 / 8, 2 / 8, 3 / 8, 1 / 2, 1 / 2, 1 / 2, 1 / 2])


def test_a_cosine_schedule_falls_to_zero_with_and_without_warm_up() -> None:
    cosine = replace(SETTINGS, schedule="cosine")
    half = 0.25 * (1 + np.cos(np.pi * np.array([0, 1, 2, 3, 4]) / 4))
    assert rates(create_optimizer(cosine, 4), 5) == pytest.approx(half, abs=1e-7)
    warming = replace(cosine, warmup_fraction=1 / 3)
    assert rates(create_optimizer(warming, 6), 7) == pytest.approx([0, 0.25, *half], abs=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_a_weight_decay_of_zero_leaves_alone_what_has_no_gradient(name: str) -> None:
    for create in (create_optimizer, create_stock_optimizer):
        bias = keras.Variable([1.0, -2.0])
        create(replace(SETTINGS, optimizer=name), 10).apply([keras.ops.zeros(2)], [bias])
        assert bias.numpy().tolist() == [1.0, -2.0]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_a_weight_decay_shrinks_what_has_no_gradient(name: str) -> None:
    settings = replace(
        SETTINGS, optimizer=name, schedule="constant", learning_rate=0.1, vector_learning_rate=0.1, weight_decay=0.5
    )
    for create in (create_optimizer, create_stock_optimizer):
        bias = keras.Variable([1.0, -2.0])
        create(settings, 10).apply([keras.ops.zeros(2)], [bias])
        np.testing.assert_allclose(bias, [0.95, -1.9], atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_the_stock_optimizer_carries_the_hyperparameters(name: str) -> None:
    settings = replace(SETTINGS, optimizer=name, momentum=0.7, weight_decay=0.03, weight_average=0.95)
    optimizer = create_stock_optimizer(settings, 10)
    assert type(optimizer).__module__.startswith("keras.")
    config = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)).get_config()
    assert config["name"] == name
    assert config["learning_rate"]["config"]["initial_learning_rate"] == 0.5
    assert config["learning_rate"]["config"]["decay_steps"] == 10
    assert config["adam_weight_decay" if name == "muon" else "weight_decay"] == 0.03
    assert (config["use_ema"], config["ema_momentum"]) == (True, 0.95)
    assert config.get("momentum", 0.7) == 0.7


def test_muon_makes_the_update_of_a_convolution_orthogonal() -> None:
    settings = replace(SETTINGS, optimizer="muon", momentum=0.6, schedule="constant", learning_rate=0.1)
    generator = np.random.default_rng(0)
    kernel = keras.Variable(generator.normal(size=(3, 3, 4, 8)), dtype="float32", name="kernel")
    optimizer = create_optimizer(settings, 10)
    momentum = np.zeros((36, 8))
    for _ in range(2):
        start, gradient = kernel.numpy().reshape(36, 8), generator.normal(size=(36, 8))
        optimizer.apply([keras.ops.convert_to_tensor(gradient.reshape(kernel.shape), "float32")], [kernel])
        normed = start * np.sqrt(8) / np.linalg.norm(start)
        update = (normed - kernel.numpy().reshape(36, 8)) / 0.1
        lengths = np.linalg.svd(update, compute_uv=False)
        assert lengths.min() > 0.5
        assert lengths.max() < 1.5
        momentum = 0.6 * momentum + gradient
        left, _, right = np.linalg.svd(gradient + 0.6 * momentum, full_matrices=False)  # Nesterov's
        assert np.sum(update * (left @ right)) > 0.97 * np.linalg.norm(update) * np.sqrt(8)


@pytest.mark.parametrize("shape", [(200, 30), (30, 200), (40, 40)])
def test_muon_orthogonalises_as_kerass_own_does(shape: tuple[int, int]) -> None:
    settings = replace(SETTINGS, optimizer="muon")
    ours, kerass = create_optimizer(settings, 10), create_stock_optimizer(settings, 10)
    assert ours.zeropower_via_newtonschulz5.__func__ is not kerass.zeropower_via_newtonschulz5.__func__
    gradient = keras.ops.convert_to_tensor(np.random.default_rng(2).normal(size=shape) * 1e-3, "float32")
    expected = kerass.zeropower_via_newtonschulz5(gradient, 4)
    np.testing.assert_allclose(ours.zeropower_via_newtonschulz5(gradient, 4), expected, atol=1e-4)


def test_muon_leaves_vectors_and_the_last_layer_to_adam() -> None:
    settings = replace(
        SETTINGS, optimizer="muon", schedule="constant", learning_rate=0.1, vector_learning_rate=0.01, weight_decay=0.0
    )
    bias = keras.Variable(np.ones(4), dtype="float32", name="bias")
    answer = keras.Variable(np.ones((4, 3)), dtype="float32", name="answer_kernel")
    create_optimizer(settings, 10).apply(
        [keras.ops.array([1.0, -2.0, 3.0, -4.0]), keras.ops.ones((4, 3)) * 5], [bias, answer]
    )
    np.testing.assert_allclose(bias, [0.99, 1.01, 0.99, 1.01], atol=1e-5)  # Adam's first step is the rate, up or down
    np.testing.assert_allclose(answer, np.full((4, 3), 0.99), atol=1e-5)
