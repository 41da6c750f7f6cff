"""The script that measures an entry of the table "accuracy per minute", on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import entry
from pipeline.data import table, tiny
from pipeline.data.catalog import load_entry
from tests.conftest import REPOSITORY

NETWORK = """
import keras

def build():
    layers = [keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model

def train(model, images, labels, validation):
    assert len(validation[0]) == 50
    model.fit(images / 255, labels, epochs=1, verbose=0)
"""


def test_a_network_is_trained_and_judged(tmp_path: Path) -> None:
    dataset = load_entry("tiny", REPOSITORY / "data/catalog").dataset
    for seed, (split, count) in enumerate({"train": 300, "validation": 50, "test": 40}.items()):
        images, labels = tiny.generate(count, seed)
        with table.writer(tmp_path / f"{split}.parquet", dataset) as rows:
            ids = table.strings([f"{split}-{row}" for row in range(count)])
            rows.write(images, labels, ids, table.strings([table.OFFICIAL] * count))
    (tmp_path / "network.py").write_text(NETWORK)
    script = REPOSITORY / "benchmarks/entry.py"
    command = (sys.executable, str(script), str(tmp_path / "network.py"), "--splits", str(tmp_path), "--seed", "1")
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    result = json.loads(shown.splitlines()[-1])
    assert result["cpu_seconds"] > 0
    assert result["accuracy"] * 50 == round(result["accuracy"] * 50)  # of the validation images
    assert entry.describe("network", [result, result | {"accuracy": 0.5}], 2 * result["cpu_seconds"])[3] == "0.50 x"
    saved = {"seconds": None, "cpu_seconds": None, "accuracy": 0.9}
    assert entry.describe("saved", [saved], 1.0) == ("saved", "", "", "", "0.9000", "", "0.9000")
