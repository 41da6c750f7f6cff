"""A batch shared among replicas trains what one device trains: on devices of one process, and in several processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.models import distribution
from pipeline.models.cluster import this_worker

# Trains on generated garments and leaves the history and the weights, as every replica of this process has them.
SCRIPT = """
import json, sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
from pipeline.models.backend import make_repeatable, tf
kind, changes, target = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
if kind == "mirrored":
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
from pipeline.data import tiny
from pipeline.models import distribution, networks, training
from pipeline.models.checkpoints import Checkpoint
from pipeline.models.tasks import create_task
from pipeline.params import load_params
strategy = distribution.create_strategy(kind)
settings = replace(load_params(Path(sys.argv[4])).train.settings, **changes)
task = create_task("sparse_categorical_crossentropy", [str(label) for label in range(10)])
examples = [training.Examples(*tiny.generate(count, seed)) for count, seed in ((640, 1), (200, 2))]
make_repeatable(1)
with distribution.replicated(strategy):
    network = networks.create_network(settings, task, (28, 28), "float32")
networks.whiten(network, examples[0].sample)
progress = []
epochs = training.train(
    network, task, *examples, settings, seed=1, checkpoint=Checkpoint(target / "checkpoint.npz"), strategy=strategy,
    class_weights=np.linspace(0.5, 1.5, 10, dtype=np.float32), report=progress.append,
)
history = [asdict(epoch) for epoch in epochs]
assert progress[-1].done == 1 and progress[-1].epoch == settings.epochs
(target / "history.json").write_text(json.dumps(history))
replicas = [strategy.experimental_local_results(variable.value) for variable in network.variables]
np.savez(target / "weights.npz", *[np.stack([part.numpy() for part in parts]) for parts in replicas])
"""
SHORT = {"epochs": 4, "batch_size": 64, "widths": [16], "xla": "never", "precision": "float32"}
PLAIN = SHORT | {
    "optimizer": "sgd",
    "momentum": 0.9,
    "learning_rate": 0.1,
    "flip": True,
    "shift": 2,
    "erase": 8,  # each replica must take the choices that belong to its images
}
CNN: dict[str, Any] = SHORT | {
    "network": "cnn",
    "widths": [4, 8],
    "whitening": 3,
    "optimizer": "muon",
    "learning_rate": 0.05,
    "vector_learning_rate": 0.006,
    "schedule": "cosine",
    "flip": True,
    "shift": 1,
    "weight_average": 0.5,
}


def start(kind: str, changes: dict[str, Any], target: Path, **environment: str) -> subprocess.Popen[str]:
    target.mkdir()
    command = [sys.executable, "-c", SCRIPT, kind, json.dumps(changes), str(target), "params.yaml"]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors


def read(target: Path) -> tuple[list[dict[str, float]], list[np.ndarray]]:
    """The epochs, and each weight [replicas of the process, ...]."""
    with np.load(target / "weights.npz") as weights:
        return json.loads((target / "history.json").read_text()), [weights[name] for name in weights.files]


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def clusters(workers: int) -> list[str]:
    """TF_CONFIG for each of some workers on this machine."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    tasks = [{"type": "worker", "index": index} for index in range(workers)]
    return [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]


def test_two_mirrored_devices_train_what_one_trains(tmp_path: Path) -> None:
    finish(start("none", PLAIN, tmp_path / "one"), start("mirrored", PLAIN, tmp_path / "two"))
    (expected, alone), (history, weights) = read(tmp_path / "one"), read(tmp_path / "two")
    for mine, its in zip(history, expected, strict=True):
        for name in ("loss", "accuracy", "validation_loss", "learning_rate"):
            assert mine[name] == pytest.approx(its[name], rel=1e-3), name
    for both, one in zip(weights, alone, strict=True):
        assert len(both) == 2
        assert np.array_equal(both[0], both[1])
        assert np.allclose(both[0], one[0], atol=1e-4)


@pytest.mark.faults  # four processes that start TensorFlow, and wait for each other
def test_two_workers_train_what_one_trains_and_agree(tmp_path: Path) -> None:
    finish(start("none", PLAIN, tmp_path / "alone"))
    first, second = clusters(2)
    finish(
        start("multi_worker", PLAIN, tmp_path / "first", TF_CONFIG=first),
        start("multi_worker", PLAIN, tmp_path / "second", TF_CONFIG=second),
    )
    (expected, alone), (history, chief), (others, worker) = (read(tmp_path / n) for n in ("alone", "first", "second"))
    for mine, its, one in zip(history, others, expected, strict=True):
        assert mine["validation_loss"] == its["validation_loss"]
        assert mine["loss"] == its["loss"] == pytest.approx(one["loss"], rel=1e-3)
    for mine, its, one in zip(chief, worker, alone, strict=True):
        assert np.array_equal(mine, its)
        assert np.allclose(mine, one, atol=1e-4)


@pytest.mark.faults
def test_replicas_agree_on_batch_normalisation_and_averaged_weights(tmp_path: Path) -> None:
    first, second = clusters(2)
    finish(
        start("mirrored", CNN, tmp_path / "mirrored"),
        start("multi_worker", CNN, tmp_path / "first", TF_CONFIG=first),
        start("multi_worker", CNN, tmp_path / "second", TF_CONFIG=second),
    )
    history, mirrored = read(tmp_path / "mirrored")
    assert history[-1]["loss"] < history[0]["loss"] / 2
    for parts, mine, its in zip(mirrored, *(read(tmp_path / name)[1] for name in ("first", "second")), strict=True):
        assert np.array_equal(parts[0], parts[1])
        assert np.array_equal(mine, its)
        assert np.allclose(parts[0], mine[0], atol=0.01)


def test_a_worker_knows_itself_by_tf_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert this_worker() is None
    cluster: dict[str, list[str]] = {"worker": ["a:1", "b:1"]}
    for kind, index, addresses, chief in (
        ("worker", 0, cluster, True),
        ("worker", 1, cluster, False),
        ("worker", 0, cluster | {"chief": ["c:1"]}, False),
        ("chief", 0, cluster | {"chief": ["c:1"]}, True),
    ):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": addresses, "task": {"type": kind, "index": index}}))
        worker = this_worker()
        assert worker
        assert (worker.name, worker.chief) == (f"{kind} {index}", chief)
    for config in ("nothing", "[]", '{"task": {}}'):
        monkeypatch.setenv("TF_CONFIG", config)
        with pytest.raises(ModelError, match="cannot read the variable TF_CONFIG"):
            this_worker()


def test_settings_that_do_not_go_with_tf_config_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ModelError, match="the workers are not configured"):
        distribution.create_strategy("multi_worker")
    monkeypatch.setenv("TF_CONFIG", clusters(2)[1])
    with pytest.raises(ModelError, match=r"this process worker 1, but train.data_parallel is none"):
        distribution.create_strategy("none")


class Replicas:
    """As much of a strategy as is asked for its size."""

    num_replicas_in_sync = 3


def test_a_batch_that_cannot_be_divided_evenly_is_refused() -> None:
    distribution.require_divisible(63, Replicas())
    with pytest.raises(ModelError, match=r"(?s)64 images cannot be divided evenly among 3.*change train.batch_size"):
        distribution.require_divisible(64, Replicas())
