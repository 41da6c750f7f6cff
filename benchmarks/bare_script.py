"""The yardstick: an introduction's Keras script, as a learner writes it, with Keras's defaults and nothing around it.

    python benchmarks/bare_script.py data/raw model.keras [--epochs 5] [--seed 1]

The first argument is a directory with the four decompressed idx files of Fashion-MNIST.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np


def read_images(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28) / 255


def read_labels(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.uint8, offset=8)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        keras.utils.set_random_seed(arguments.seed)

    train_images = read_images(arguments.data / "train-images-idx3-ubyte")
    train_labels = read_labels(arguments.data / "train-labels-idx1-ubyte")
    test_images = read_images(arguments.data / "t10k-images-idx3-ubyte")
    test_labels = read_labels(arguments.data / "t10k-labels-idx1-ubyte")

    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    started, cpu_started = time.perf_counter(), time.process_time()
    model.fit(train_images, train_labels, epochs=arguments.epochs)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    loss, accuracy = model.evaluate(test_images, test_labels)
    model.save(arguments.model)
    figures = {"fit_seconds": seconds, "fit_cpu_seconds": cpu_seconds, "test_loss": loss, "test_accuracy": accuracy}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
