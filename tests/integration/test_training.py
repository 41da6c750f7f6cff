"""The training loop: what it learns, what it keeps, and that a training which was cut short ends with the same bits."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.data import tiny
from pipeline.errors import ModelError
from pipeline.models import backend, networks
from pipeline.models.checkpoints import Checkpoint
from pipeline.models.inference import predict
from pipeline.models.tasks import Task, balance_classes, create_task
from pipeline.models.training import Epoch, Examples, find_best, plan_batches, train
from pipeline.params import TrainSettings, parse_params
from tests.conftest import REPOSITORY

RAW = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
CLASSES = [str(label) for label in range(10)]
SOFTMAX = create_task("sparse_categorical_crossentropy", CLASSES)
TRAINING, VALIDATION = Examples(*tiny.generate(330, 1)), Examples(*tiny.generate(100, 2))


def settings_of(preset: str, **changes: object) -> TrainSettings:
    settings = parse_params(RAW | {"train": RAW["train"] | {"preset": preset}}).train.settings
    return replace(settings, **{"batch_size": 32, "epochs": 3} | changes)


MLP = settings_of("mlp", widths=(32,), xla="never")  # compiling takes longer than training here
CNN = settings_of("cnn", widths=(4, 8), shift=1, erase=6, weight_average=0.9, precision="bfloat16")


class Run:
    """A training of a small network that can be stopped after some epochs."""

    def __init__(self, directory: Path, settings: TrainSettings, task: Task = SOFTMAX, seed: int = 1) -> None:
        self.settings, self.task, self.seed = settings, task, seed
        self.checkpoint = Checkpoint(directory / "checkpoint.npz")

    def go(
        self, epochs: int | None = None, training: Examples = TRAINING, class_weights: np.ndarray | None = None
    ) -> list[Epoch]:
        """Train as a new process would: a new network, and the checkpoint if there is one."""
        backend.make_repeatable(self.seed)
        self.network = networks.create_network(self.settings, self.task, (28, 28), self.settings.precision)
        networks.whiten(self.network, training.sample)
        epochs_of = train(
            self.network,
            self.task,
            training,
            VALIDATION,
            self.settings,
            seed=self.seed,
            checkpoint=self.checkpoint,
            class_weights=class_weights,
        )
        return list(islice(epochs_of, epochs))

    @property
    def weights(self) -> list[bytes]:
        return [weight.tobytes() for weight in self.network.get_weights()]


@pytest.mark.parametrize(
    ("loss", "positive"),
    [("sparse_categorical_crossentropy", []), ("categorical_crossentropy", []), ("binary_crossentropy", [1, 8])],
)
def test_each_loss_learns(loss: str, positive: Sequence[int], tmp_path: Path) -> None:
    run = Run(tmp_path, replace(MLP, epochs=12), create_task(loss, CLASSES, positive))
    history = run.go()
    assert [epoch.epoch for epoch in history] == list(range(1, 13))
    assert history[-1].loss < history[0].loss / 2
    assert history[-1].validation_accuracy > 0.8
    answers = predict(run.network, VALIDATION.images)
    right = answers[:, 0] > 0.5 if positive else answers.argmax(axis=1)
    accuracy = np.mean(right == run.task.answers(VALIDATION.labels))
    assert accuracy == pytest.approx(find_best(history).validation_accuracy)


def test_class_weights_find_a_rare_class_and_its_best_epoch(tmp_path: Path) -> None:
    """Shirts and T-shirts, 1 to 50: too few shirts to move the weights of a training that only counts images."""
    images, labels = tiny.generate(4000, 3)
    rows = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 6)[:8]])
    training = Examples(images[rows], labels[rows])
    weights = balance_classes(np.array([8, 400]))
    recalls = []
    for name, class_weights in (("none", None), ("balanced", weights)):
        run = Run(tmp_path / name, replace(MLP, epochs=6), create_task("binary_crossentropy", CLASSES, [0]))
        best = find_best(run.go(training=training, class_weights=class_weights))
        predicted = predict(run.network, VALIDATION.images)[:, 0] > 0.5
        recall = [np.mean(predicted[VALIDATION.labels == label] == (label == 0)) for label in (6, 0)]
        recalls.append(recall[0])
        if class_weights is None:
            assert best.validation_balanced_accuracy is None
        else:
            actual = VALIDATION.labels == 0
            balanced = np.mean([np.mean(predicted[actual == side] == side) for side in (False, True)])
            assert best.validation_balanced_accuracy == pytest.approx(balanced)
    assert recalls[0] < recalls[1]


def test_with_class_weights_the_best_epoch_has_the_best_balanced_accuracy() -> None:
    first = Epoch(1, 0.5, 0.9, 0.5, 0.95, 0.1, 1.0, validation_balanced_accuracy=0.5)
    second = Epoch(2, 0.5, 0.9, 0.5, 0.90, 0.1, 1.0, validation_balanced_accuracy=0.8)
    assert find_best([first, second]) is second
    assert "validation_balanced_accuracy" not in replace(first, validation_balanced_accuracy=None).metrics()


def test_weighted_classes_have_the_same_share_of_the_loss() -> None:
    counts = np.array([1500, 30, 30])
    weights = balance_classes(counts)
    assert np.allclose(counts * weights, counts.sum() / 3)


def test_a_set_smaller_than_a_batch_is_one_batch_that_the_replicas_can_share() -> None:
    assert plan_batches(171, replace(MLP, batch_size=256)) == (171, 1)
    assert plan_batches(171, replace(MLP, batch_size=256), replicas=2) == (170, 1)
    assert plan_batches(600, replace(MLP, batch_size=256), replicas=2) == (256, 2)


def test_one_hot_and_integer_labels_train_the_same_network(tmp_path: Path) -> None:
    integer, one_hot = (
        Run(tmp_path / "a", MLP),
        Run(tmp_path / "b", MLP, create_task("categorical_crossentropy", CLASSES)),
    )
    for mine, other in zip(integer.go(), one_hot.go(), strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "stopped_after"),
    [(replace(MLP, xla="always"), 1), (MLP, 3), (CNN, 2)],
    ids=["mlp compiled", "mlp at its end", "cnn"],
)
def test_a_training_that_was_cut_short_ends_with_the_same_bits(
    settings: TrainSettings, stopped_after: int, tmp_path: Path
) -> None:
    whole, cut = Run(tmp_path / "whole", settings), Run(tmp_path / "cut", settings)
    expected = whole.go()
    first = cut.go(epochs=stopped_after)
    history = cut.go()
    assert first == expected[:stopped_after]
    assert history == expected
    assert [epoch.restored for epoch in history] == [number < stopped_after for number in range(3)]
    assert cut.weights == whole.weights


def test_a_damaged_checkpoint_is_as_none(tmp_path: Path) -> None:
    run = Run(tmp_path, MLP)
    first = run.go(2)[0]
    whole = run.checkpoint.path.read_bytes()
    assert run.go(1)[0].restored
    for content in (whole[: len(whole) // 2], b"", b"nothing"):
        run.checkpoint.path.write_bytes(content)
        again = run.go(1)
        assert again == [first]
        assert not again[0].restored
    run.checkpoint.remove()
    assert not list(tmp_path.iterdir())


def test_the_seed_decides(tmp_path: Path) -> None:
    first, other = Run(tmp_path / "a", MLP, seed=1), Run(tmp_path / "b", MLP, seed=2)
    assert first.go(1) != other.go(1)


def test_the_best_epoch_is_kept_and_patience_ends_the_training(tmp_path: Path) -> None:
    """A rate that is far too high makes the first epochs differ wildly."""
    run = Run(tmp_path, replace(MLP, optimizer="sgd", learning_rate=0.8, schedule="constant", epochs=30, patience=3))
    history = run.go()
    best = find_best(history)
    assert best.epoch < len(history) < 30
    assert len(history) == best.epoch + 3
    assert best.validation_accuracy > history[-1].validation_accuracy
    accuracy = np.mean(predict(run.network, VALIDATION.images).argmax(axis=1) == VALIDATION.labels)
    assert accuracy == pytest.approx(best.validation_accuracy)
    weights = run.weights
    assert run.go() == history
    assert run.weights == weights


def test_averaged_weights_are_judged_and_kept_while_training_goes_on_with_its_own(tmp_path: Path) -> None:
    """With one step an epoch the average follows by hand from the weights that a plain training has after each."""
    settings = replace(MLP, batch_size=len(TRAINING.labels), epochs=4)
    plain, averaged = Run(tmp_path / "a", settings), Run(tmp_path / "b", replace(settings, weight_average=0.6))
    history = averaged.go()
    expected: list[np.ndarray] = []
    for number in range(1, find_best(history).epoch + 1):
        mine = plain.go(number)[-1]
        assert mine.loss == history[number - 1].loss
        current = plain.network.get_weights()
        pairs = zip(expected or current, current, strict=True)
        expected = [0.6 * average + 0.4 * weight for average, weight in pairs]
    assert number > 1
    assert mine.validation_loss != history[number - 1].validation_loss
    for kept, average, own in zip(averaged.network.get_weights(), expected, current, strict=True):
        assert np.allclose(kept, average, atol=1e-6)
        assert not np.allclose(kept, own, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    run = Run(tmp_path, replace(MLP, optimizer="sgd", learning_rate=1e30, schedule="constant"))
    with pytest.raises(ModelError, match=r"(?s)not finite after epoch 1.*lower train.learning_rate"):
        run.go()


def test_labels_and_outputs_that_do_not_fit_are_refused_before_training(tmp_path: Path) -> None:
    run = Run(tmp_path, MLP, create_task("sparse_categorical_crossentropy", CLASSES[:5]))
    with pytest.raises(ModelError, match="labels from 0 to 4"):
        run.go()
    network = networks.create_network(MLP, SOFTMAX, (28, 28))
    binary = create_task("binary_crossentropy", CLASSES, [1])
    with pytest.raises(ModelError, match="1 sigmoid unit"):
        next(train(network, binary, TRAINING, VALIDATION, MLP, seed=1, checkpoint=run.checkpoint))


def test_a_batch_larger_than_the_data_is_all_of_it(tmp_path: Path) -> None:
    assert plan_batches(330, MLP) == (32, 10)
    assert plan_batches(20, MLP) == (20, 1)
    few = Examples(TRAINING.images[:20], TRAINING.labels[:20])
    assert np.isfinite(Run(tmp_path, MLP).go(training=few)[-1].loss)


@pytest.mark.parametrize(("xla", "precision"), [("always", "float32"), ("always", "bfloat16"), ("never", "bfloat16")])
def test_every_way_to_compute_gives_nearly_the_same(xla: str, precision: str, tmp_path: Path) -> None:
    reference = Run(tmp_path / "a", MLP).go()
    other = Run(tmp_path / "b", replace(MLP, xla=xla, precision=precision)).go()
    for mine, its in zip(reference, other, strict=True):
        assert its.loss == pytest.approx(mine.loss, rel=0.02)
