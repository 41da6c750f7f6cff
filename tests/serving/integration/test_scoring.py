"""Batch scoring: every form of input, pictures that cannot be read, interruptions, and the record in MLflow."""

import csv
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data import table
from pipeline.errors import DataError, TrackingError
from pipeline.evaluation.predictions import PREDICTIONS, read_predictions
from pipeline.params import load_params
from pipeline.serving import scoring_inputs
from pipeline.serving.scoring import Options, score
from pipeline.serving.scoring_partitions import Pixels
from pipeline.serving.scoring_parts import ScoredBy, Task, load_model, read_part, score_partition
from pipeline.serving.scoring_run import Seen
from pipeline.tracking.stage_outputs import Outputs
from pipeline.tracking.store import locate, open_store
from tests.conftest import REPOSITORY, Project, write_idx
from tests.documentation import read_blocks
from tests.processes import wait_until

COUNT = 60
Score = Callable[..., Seen]


@pytest.fixture(scope="module")
def project(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a trained champion."""
    return template.copy_to(tmp_path_factory.mktemp("scoring") / "project")


@pytest.fixture(scope="module")
def images(project: Project) -> np.ndarray:
    """The first test images."""
    return table.read_images(Outputs(project.path).split("test"))[0][:COUNT]


@pytest.fixture(scope="module")
def expected(project: Project) -> Any:
    """What `evaluate` predicted for them."""
    outputs = Outputs(project.path)
    return read_predictions(outputs.evaluation / PREDICTIONS).in_order_of(table.read_ids(outputs.split("test")))


@pytest.fixture
def run(project: Project, monkeypatch: pytest.MonkeyPatch) -> Score:
    """Score in this process, in partitions of eight pictures."""
    monkeypatch.chdir(project.path)
    monkeypatch.setattr(scoring_inputs, "PICTURES", 8)
    monkeypatch.setattr(scoring_inputs, "ROWS", 8)

    def start(source: Path, output: Path, advance: Callable[[int], None] = lambda _: None, **options: Any) -> Seen:
        return score(project.path, source, output, Options(**options), lambda _: advance)

    return start


def save_pictures(folder: Path, images: np.ndarray) -> list[str]:
    names = [f"{'deep/' * (row % 2)}{row:03}.png" for row in range(len(images))]
    (folder / "deep").mkdir(parents=True)
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    return names


def save_folder(folder: Path, images: np.ndarray) -> tuple[Path, list[str]]:
    names = save_pictures(folder / "pictures", images)
    (folder / "pictures/notes.txt").write_text("not a picture")
    return folder / "pictures", sorted(names, key=lambda name: (name.startswith("deep/"), name))


def save_csv(folder: Path, images: np.ndarray) -> tuple[Path, list[str]]:
    names = save_pictures(folder / "pictures", images)
    with (folder / "pictures.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "price"), *((f"pictures/{name}", 3) for name in names)])
    return folder / "pictures.csv", [f"pictures/{name}" for name in names]


def save_json_lines(folder: Path, images: np.ndarray) -> tuple[Path, list[str]]:
    names = save_pictures(folder, images)
    rows = [json.dumps({"id": f"sku-{row}", "path": name}) for row, name in enumerate(names)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder / "rows.jsonl", [f"sku-{row}" for row in range(len(names))]


def save_embedded(folder: Path, images: np.ndarray) -> tuple[Path, list[str]]:
    names = save_pictures(folder, images)
    pictures = [{"bytes": (folder / name).read_bytes(), "path": None} for name in names]
    pq.write_table(pa.table({"image": pictures}), folder / "hub.parquet", row_group_size=7)
    return folder / "hub.parquet", [str(row) for row in range(len(names))]


def save_table(folder: Path, images: np.ndarray) -> tuple[Path, list[str]]:
    ids = [f"{row:040x}-0" for row in range(len(images))]
    pixels = pa.array([image.tobytes() for image in images], pa.binary(images[0].size))
    folder.mkdir()
    for number, part in enumerate((slice(20), slice(20, None))):  # a folder of two files
        rows = pa.table({"image": pixels[part], "id": pa.array(ids[part])})
        pq.write_table(rows, folder / f"{number}.parquet", row_group_size=3)
    return folder, ids


def save_array(folder: Path, images: np.ndarray) -> tuple[Path, list[str]]:
    folder.mkdir()
    if "npy" in folder.name:
        np.save(folder / "a.npy", images[..., None])
        return folder / "a.npy", [str(row) for row in range(len(images))]
    if "npz" in folder.name:
        np.savez_compressed(folder / "a.npz", x_test=images, y_test=np.zeros(len(images), int))
        return folder / "a.npz", [str(row) for row in range(len(images))]
    write_idx(folder / "a-images-idx3-ubyte", images)
    return folder / "a-images-idx3-ubyte", [str(row) for row in range(len(images))]


FORMS = {
    "folder": save_folder,
    "csv": save_csv,
    "json lines": save_json_lines,
    "embedded": save_embedded,
    "table": save_table,
    **dict.fromkeys(("npy", "npz", "idx"), save_array),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input_has_the_predictions_of_the_evaluation(
    form: str, run: Score, images: np.ndarray, expected: Any, tmp_path: Path
) -> None:
    source, ids = FORMS[form](tmp_path / form, images)
    seen = run(source, tmp_path / "out.parquet", all_probabilities=True)
    assert (seen.rows, seen.failed) == (COUNT, 0)
    assert dict(seen.left_out) == ({".txt files": 1} if form == "folder" else {})
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["id"].to_pylist() == ids
    order = [int(name.removesuffix(".png").rpartition("/")[2]) for name in ids] if form == "folder" else range(COUNT)
    assert found["label"].to_pylist() == expected.predicted[order].tolist()
    assert np.allclose(found["probabilities"].to_pylist(), expected.probabilities[order], atol=1e-5)
    assert np.allclose(found["probability"].to_pylist(), expected.confidences[order], atol=1e-5)
    assert found["class"].to_pylist() == [expected.classes[label] for label in expected.predicted[order]]
    assert found["error"].null_count == COUNT
    assert set(found["version"].to_pylist()) == {"1"}
    assert set(found["model"].to_pylist()) == {seen.model.contract.litert_sha256}
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.parquet"]


def test_pictures_of_other_sizes_are_resized_as_for_training(run: Score, images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(images[0]).resize((56, 56), Image.Resampling.NEAREST).save(tmp_path / "in/large.png")
    Image.fromarray(images[0]).convert("RGB").save(tmp_path / "in/colour.png")
    Image.fromarray(images[0]).save(tmp_path / "in/plain.png")
    np.save(tmp_path / "large.npy", np.kron(images[:1], np.ones((1, 2, 2), np.uint8)))
    run(tmp_path / "in", tmp_path / "a.parquet")
    run(tmp_path / "large.npy", tmp_path / "b.parquet")
    colour, large, plain = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert colour["probability"] == plain["probability"]
    assert large["label"] == plain["label"]
    assert pq.read_table(tmp_path / "b.parquet")["probability"].to_pylist() == [large["probability"]]


def test_a_picture_that_cannot_be_read_has_an_error_and_the_others_their_predictions(
    run: Score, images: np.ndarray, tmp_path: Path
) -> None:
    source, ids = save_csv(tmp_path, images)
    (tmp_path / ids[3]).write_text("no picture")
    (tmp_path / ids[10]).unlink()
    (tmp_path / ids[11]).write_bytes((tmp_path / ids[11]).read_bytes()[:60])
    with source.open("a") as file:
        file.write(",7\n")
    seen = run(source, tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    bad = [place for place, row in enumerate(rows) if row["error"]]
    assert bad == [3, 10, 11, COUNT]
    assert (seen.rows, seen.failed, len(seen.errors)) == (COUNT + 1, 4, 4)
    assert "No such file" in rows[10]["error"]
    assert not any("object at 0x" in rows[place]["error"] for place in bad)  # the output has the same bytes each time
    assert rows[COUNT]["id"] == f"row {COUNT + 1}"
    for place in bad:
        assert [rows[place][name] for name in ("label", "class", "probability")] == [None, None, None]
    assert all(row["label"] is not None for place, row in enumerate(rows) if place not in bad)
    assert seen.counts.sum() == COUNT - 3


def test_a_refused_input_writes_nothing_and_loses_nothing(run: Score, images: np.ndarray, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    output.write_bytes(b"the former predictions")
    np.save(tmp_path / "floats.npy", images.astype(float))
    np.savez(tmp_path / "empty.npz", images=images[:0])
    pq.write_table(pa.table({"image": [1, 2]}), tmp_path / "numbers.parquet")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no pictures")
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    (tmp_path / "no column.csv").write_text("price\n3\n")
    (tmp_path / "no rows.csv").write_text("path\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in {*before, "missing"} - {"out.parquet"}:
        with pytest.raises(DataError) as refused:
            run(tmp_path / name, output)
        assert refused.value.expected or refused.value.found, name
    with pytest.raises(TrackingError, match="has no version 7"):
        run(tmp_path / "bad", output, version="7")
    with pytest.raises(DataError, match="inside the input"):
        run(tmp_path / "bad", tmp_path / "bad/out.parquet")
    with pytest.raises(DataError, match="cannot write"):
        run(tmp_path / "bad", tmp_path / "out.csv")
    assert output.read_bytes() == b"the former predictions"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_yes_or_no_model_in_colour_scores_grey_pictures_too(tmp_path: Path) -> None:
    from pipeline.models import archive, export, networks
    from pipeline.models.tasks import create_task

    classes, ground = ("red", "green", "blue"), (30, 60, 90)
    settings = load_params(REPOSITORY / "params.yaml").train.settings
    task = create_task("binary_crossentropy", classes, ["blue"])
    network = archive.export(networks.create_network(settings, task, (8, 6, 3)), settings, task, 10, ground=ground)
    images = np.random.default_rng(1).integers(0, 256, (9, 8, 6, 3), dtype=np.uint8)
    export.write_model(tmp_path, network, task, [images], export.Subject("hues", classes, (), ground))
    _, model = load_model(tmp_path)
    for pictures in (images, images[..., 0]):
        part = tmp_path / f"{pictures.ndim}.arrow"
        score_partition(Task(Pixels(pictures, 0), part, ScoredBy(tmp_path, "1", all_probabilities=True), stride=2))
        rows, sampled = read_part(part)
        yes = model.predict(pictures if pictures.ndim == 4 else np.repeat(pictures[..., None], 3, axis=3))[:, 0]
        assert np.allclose(rows["probabilities"].to_pylist(), np.stack([1 - yes, yes], axis=1), atol=1e-6)
        assert rows["class"].to_pylist() == ["blue" if one > 0.5 else "other" for one in yes]
        assert {name: len(values) for name, values in sampled.items()}["yellow_blue"] == 5


def interrupt_after(parts: int) -> Callable[[int], None]:
    left = [parts]

    def advance(_: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return advance


def find_parts(output: Path) -> dict[str, int]:
    folder = output.with_name(f"{output.name}.parts")
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("*/*.arrow"))}


def has_parts(output: Path, enough: int) -> bool:
    return len(find_parts(output)) >= enough


def test_an_interrupted_scoring_continues_and_has_the_same_bytes(
    run: Score, images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", images)
    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    run(tmp_path / "a.npy", whole)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.npy", output, interrupt_after(3))
    finished = find_parts(output)
    assert len(finished) == 3
    assert not output.exists()

    last = next(output.with_name("out.parquet.parts").glob("*/000002.arrow"))
    last.write_bytes(last.read_bytes()[:-20])  # as after a power failure
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.npy", output, interrupt_after(4))
    continued = find_parts(output)
    assert [continued[name] == finished[name] for name in finished] == [True, True, False]
    run(tmp_path / "a.npy", output)
    assert output.read_bytes() == whole.read_bytes()
    assert find_parts(output) == {}


def test_parts_of_another_input_or_model_are_not_used(run: Score, images: np.ndarray, tmp_path: Path) -> None:
    output, whole = tmp_path / "out.parquet", tmp_path / "whole.parquet"
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.npy", output, interrupt_after(3))
    np.save(tmp_path / "a.npy", 255 - images)
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    run(tmp_path / "a.npy", output)
    run(tmp_path / "a.npy", whole)
    assert output.read_bytes() == whole.read_bytes()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.npy", output, interrupt_after(3))
    kept = find_parts(output)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.npy", output, interrupt_after(3), restart=True)
    assert all(kept[name] != written for name, written in find_parts(output).items())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.npy", output, interrupt_after(1), all_probabilities=True)
    assert len(find_parts(output)) == 1


def test_a_scoring_is_recorded_with_the_drift_of_what_it_saw(
    project: Project, run: Score, images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "same.npy", table.read_images(Outputs(project.path).split("test"))[0])
    np.save(tmp_path / "dim.npy", images // 3)
    same, dim = (run(tmp_path / f"{name}.npy", tmp_path / f"{name}.parquet") for name in ("same", "dim"))
    assert same.drift is not None
    assert dim.drift is not None
    assert max(same.drift.values()) < 0.2
    assert dim.drift["mean"] > 0.5
    assert dim.drift.keys() == {"predicted", "confidence", "mean", "std", "ink", "row", "column"}
    assert "mean" in dim.describe_drift()

    client = open_store(locate(project.path))
    experiment = client.get_experiment_by_name("tiny-scoring")
    newest = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]
    assert newest.info.status == "FINISHED"
    assert newest.data.tags["scored.version"] == "1"
    assert newest.data.tags["input"] == str(tmp_path / "dim.npy")
    assert newest.data.metrics["pictures"] == COUNT
    assert newest.data.metrics["drift/mean"] == dim.drift["mean"]


def test_without_the_validation_images_of_the_version_the_drift_is_unknown(
    project: Project, run: Score, images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", images)
    split = Outputs(project.path).split("validation")
    split.rename(split.with_suffix(".hidden"))
    try:
        seen = run(tmp_path / "a.npy", tmp_path / "out.parquet")
    finally:
        split.with_suffix(".hidden").rename(split)
    assert seen.drift is None
    assert "unknown" in seen.describe_drift()


def test_the_commands_of_the_page_work(project: Project, expected: Any) -> None:
    script = "".join(read_blocks("docs/scoring.md"))
    printed = project.run("bash", "-euo", "pipefail", "-c", script).stdout
    found = pq.read_table(project.path / "predictions.parquet")
    assert found["label"].to_pylist() == expected.predicted.tolist()
    assert f"{len(found)} pictures by tiny version 1" in printed
    assert f"'id': '{expected.ids[0]}'" in printed


@pytest.mark.faults
def test_a_scoring_that_is_killed_again_and_again_has_the_bytes_of_an_uninterrupted_one(
    project: Project, images: np.ndarray, tmp_path: Path
) -> None:
    save_pictures(tmp_path / "pictures", images)
    encoded = [path.read_bytes() for path in sorted((tmp_path / "pictures").rglob("*.png"))] * 600
    ids = pa.array([f"sku-{row}" for row in range(len(encoded))])
    source, whole, output = (str(tmp_path / f"{name}.parquet") for name in ("in", "whole", "out"))
    pq.write_table(pa.table({"id": ids, "image": pa.array(encoded, pa.binary())}), source, row_group_size=2048)
    project.run("pipeline", "score", source, whole, "--workers", "1")
    for parts in (1, 3, 5):
        running = project.start("pipeline", "score", source, output, "--workers", "2")
        wait_until(partial(has_parts, Path(output), parts))
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert not Path(output).exists()
    finished = len(find_parts(Path(output)))
    assert finished >= 5
    project.run("pipeline", "score", source, output, "--workers", "2")
    assert Path(output).read_bytes() == Path(whole).read_bytes()
    assert pq.read_table(output)["id"].to_pylist() == ids.to_pylist()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.parquet",
        "out.parquet",
        "pictures",
        "whole.parquet",
    ]
