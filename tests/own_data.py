"""A small imported dataset in colour, as `pipeline data import` would write it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from pipeline.data import own_files, table
from pipeline.data.table import Dataset
from pipeline.files import file_digest

PARTS = Dataset("parts", 12, 10, ("bolt", "nut", "washer"), (), flip=True, channels=3)
HUES = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])


def draw_parts(count: int, seed: int, dataset: Dataset = PARTS) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of one hue for each class, on black: uint8 [count, *shape], and labels."""
    labels = np.arange(count) % len(dataset.classes)
    noise = np.random.default_rng(seed).integers(-40, 56, (count, dataset.height, dataset.width, 3))
    images = HUES[labels % 3][:, None, None] + noise
    images[:, [0, 1, -2, -1]] = images[:, :, [0, 1, -2, -1]] = 0
    return (images if dataset.channels == 3 else images[..., 0]).astype(np.uint8), labels


def write_parts(
    root: Path, dataset: Dataset = PARTS, train: int = 300, test: int = 60, groups: Sequence[str] | None = None
) -> None:
    """Write the files of the dataset and its catalogue entry below `root`. groups: of the training images."""
    home = root / own_files.OWN / dataset.name
    facts = {
        "title": "Parts",
        "licence": "CC0-1.0",
        "flip": dataset.flip,
        "classes": list(dataset.classes),
        "files": [],
    }
    facts |= {"height": dataset.height, "width": dataset.width, "channels": dataset.channels}
    facts |= {"grouped": dataset.grouped, "train": train, "test": test}
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        path = home / f"{split}.parquet"
        images, labels = draw_parts(count, seed, dataset)
        names = [f"{dataset.classes[label]}/{split}-{row}.png" for row, label in enumerate(labels)]
        columns = [names, [f"{row:064x}" for row in range(count)]]
        if dataset.grouped:
            columns.append(list(groups) if groups and split == "train" else [f"{split} {row}" for row in range(count)])
        with own_files.writer(path, dataset) as rows:
            rows.write_columns(images, labels, *map(table.strings, columns))
        facts["files"].append({"name": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)})
        if split == "train":
            facts |= {"mean": round(float(images.mean() / 255), 4), "std": round(float(images.std() / 255), 4)}
    entry = root / "data/catalog" / f"{dataset.name}.yaml"
    entry.parent.mkdir(parents=True, exist_ok=True)
    entry.write_text(yaml.safe_dump(facts), encoding="utf-8")
