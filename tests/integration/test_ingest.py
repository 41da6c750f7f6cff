"""The stage `ingest` in a directory of its own, and as DVC runs it."""

import gzip
import hashlib
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.data import idx, table, tiny
from pipeline.errors import DataError
from pipeline.params import Params, parse_params
from pipeline.stages import ingest
from tests.conftest import REPOSITORY, Project, stages_that_ran

TRAIN, TEST = Path("data/dataset/train.parquet"), Path("data/dataset/test.parquet")


@pytest.fixture(autouse=True)
def workspace(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what `ingest` reads, and an empty download cache."""
    monkeypatch.setenv("PIPELINE_CACHE", str(in_directory / "cache"))
    for name in ("incoming", "local"):
        (in_directory / "data" / name).mkdir(parents=True)
    shutil.copytree(REPOSITORY / "data/catalog", "data/catalog")
    shutil.copy(REPOSITORY / "data/corrections.csv", "data")
    return in_directory


def make_params(**dataset: Any) -> Params:
    raw = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    raw["dataset"] |= {"name": "tiny", **dataset}
    return parse_params(raw)


def digests() -> dict[str, str]:
    outputs = [path for root in ("data/raw", "data/dataset") for path in sorted(Path(root).iterdir())]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in outputs}


def add_batch(name: str, images: np.ndarray, labels: np.ndarray) -> None:
    np.savez(f"data/incoming/{name}", images=images, labels=labels)
    Path(f"data/incoming/{name}.dvc").write_text("outs: []")


def sources(path: Path) -> list[str]:
    return [source for rows in table.stream(path) for source in rows.sources.to_pylist()]


def test_tiny_is_written_as_idx_and_as_tables(capsys: pytest.CaptureFixture[str]) -> None:
    ingest.run(make_params())
    for path, prefix, count in ((TRAIN, "train", 2000), (TEST, "t10k", 500)):
        raw = idx.stream_pair(
            Path(f"data/raw/{prefix}-images-idx3-ubyte"),
            Path(f"data/raw/{prefix}-labels-idx1-ubyte"),
            table.read_dataset(path),
        )
        ((images, labels),) = raw
        stored, stored_labels = table.read_images(path)
        assert (stored == images).all()
        assert (stored_labels == labels).all()
        assert table.read_ids(path) == [f"{hashlib.sha1(image.tobytes()).hexdigest()}-0" for image in images]
        assert sources(path) == ["official"] * count
    assert table.read_dataset(TRAIN).name == table.read_dataset(TEST).name == "tiny"
    assert "train: 2,000 images of 10 classes (2,000 official)" in capsys.readouterr().out


def test_a_rerun_gives_the_same_bytes_in_place_of_the_old() -> None:
    ingest.run(make_params())
    first = digests()
    Path("data/raw/old").touch()
    ingest.run(make_params())
    assert digests() == first


def test_batches_are_appended_to_the_training_images_alone() -> None:
    ingest.run(make_params())
    test = TEST.read_bytes()
    random = np.random.default_rng(0)
    more = random.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    add_batch("b.npz", more[:10], np.full(10, 3))
    add_batch("a.npz", more[10:], np.full(20, 7))
    ingest.run(make_params())
    images, labels = table.read_images(TRAIN)
    assert sources(TRAIN) == ["official"] * 2000 + ["a.npz"] * 20 + ["b.npz"] * 10
    assert (images[2000:] == np.concatenate([more[10:], more[:10]])).all()
    assert labels[2000:].tolist() == [7] * 20 + [3] * 10
    assert TEST.read_bytes() == test


def test_ids_count_the_occurrences_of_an_image_in_its_table() -> None:
    ingest.run(make_params())
    official, _ = table.read_images(TRAIN)
    test, _ = table.read_images(TEST)
    new = np.arange(784, dtype=np.uint8).reshape(1, 28, 28)
    add_batch("a.npz", np.concatenate([official[5:7], new, test[:1], official[5:6]]), np.zeros(5, int))
    add_batch("b.npz", np.concatenate([new, official[5:6]]), np.zeros(2, int))
    before = table.read_ids(TEST)
    ingest.run(make_params())
    ids = table.read_ids(TRAIN)
    assert len(set(ids)) == len(ids)
    digest = {name: hashlib.sha1(image.tobytes()).hexdigest() for name, image in (("5", official[5]), ("new", new))}
    assert ids[5] == f"{digest['5']}-0"
    assert [ids[2000], ids[2004], ids[2006]] == [f"{digest['5']}-{number}" for number in (1, 2, 3)]
    assert [ids[2002], ids[2005]] == [f"{digest['new']}-0", f"{digest['new']}-1"]
    assert ids[2003] == before[0]  # the same image in both tables is for validation to judge
    assert table.read_ids(TEST) == before


def test_a_bad_batch_is_refused_by_name_and_the_rest_untouched() -> None:
    add_batch("a.npz", np.zeros((1, 28, 28), np.uint8), np.zeros(1, int))
    ingest.run(make_params())
    before = digests()
    add_batch("b.npz", np.zeros((1, 28, 28), np.uint8), np.full(1, 10))
    with pytest.raises(DataError, match=r"batch b\.npz is refused: data/incoming/b\.npz has labels out of range"):
        ingest.run(make_params())
    assert digests() == before
    assert not list(Path("data").glob(".*"))


def test_a_batch_that_arrives_while_others_are_read_is_not_passed_over() -> None:
    """DVC would take it for read, because it looks at the folder when the stage has ended."""
    images, labels = tiny.generate(20, seed=7)
    add_batch("first.npz", images, labels)
    ingest.run(make_params())
    before = digests()

    def arrive() -> None:
        while not list(Path("data").glob(".dataset.partial")):
            time.sleep(0.001)
        add_batch("second.npz", images, labels)

    with ThreadPoolExecutor(1) as other:
        arriving = other.submit(arrive)
        with pytest.raises(DataError, match="data/incoming changed while it was read"):
            ingest.run(make_params())
        arriving.result()
    assert digests() == before
    ingest.run(make_params())
    assert sources(TRAIN)[-40::20] == ["first.npz", "second.npz"]


def test_a_batch_that_dvc_does_not_know_is_an_error() -> None:
    add_batch("a.npz", np.zeros((1, 28, 28), np.uint8), np.zeros(1, int))
    Path("data/incoming/a.npz.dvc").unlink()
    with pytest.raises(DataError, match=r"(pipeline add-data|dvc add) data/incoming/a\.npz"):
        ingest.run(make_params())
    assert not Path("data/raw").exists()
    assert not Path("data/dataset").exists()


@pytest.mark.parametrize("shape", [(28, 28), (9, 7)])
def test_a_third_dataset_is_an_entry_and_no_code(shape: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    """Served by the Debian package's directory, so that no network is needed."""
    random = np.random.default_rng(0)
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    counts, files = {"train": 90, "test": 30}, []
    Path("share").mkdir()
    for name, count in zip(names, (90, 90, 30, 30), strict=True):
        labels = (np.arange(count) % 3).astype(np.uint8)
        idx.write(
            Path("share", name), random.integers(0, 256, (count, *shape), np.uint8) if "images" in name else labels
        )
        content = Path("share", name).read_bytes()
        files.append({"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
        Path("share", f"{name}.gz").write_bytes(gzip.compress(content))
        Path("share", name).unlink()
    letters = {
        "title": "Letters",
        "page": "https://example.invalid/",
        "licence": "CC0",
        "height": shape[0],
        "width": shape[1],
        **counts,
        "mean": 0.5,
        "std": 0.3,
        "flip": False,
        "classes": [{"en": "A", "ko": "에이"}, {"en": "B", "ko": "비"}, {"en": "C", "ko": "씨"}],
        "files": files,
        "debian": {"package": "dataset-letters", "directory": str(Path("share").resolve())},
    }
    Path("data/catalog/letters.yaml").write_text(yaml.safe_dump(letters), encoding="utf-8")
    ingest.run(make_params(name="letters"))
    assert "warning" not in capsys.readouterr().out
    images, labels = table.read_images(TRAIN)
    assert images.shape == (90, *shape)
    assert np.bincount(labels).tolist() == [30, 30, 30]
    dataset = table.read_dataset(TEST)
    assert (dataset.name, dataset.classes, dataset.classes_ko) == ("letters", ("A", "B", "C"), ("에이", "비", "씨"))
    others = {**letters, "files": [{**file, "sha256": "0" * 64} for file in files]}
    Path("data/catalog/others.yaml").write_text(yaml.safe_dump(others), encoding="utf-8")
    shutil.copytree("share", "data/local", dirs_exist_ok=True)
    ingest.run(make_params(name="others"))
    assert "They are those of letters: set dataset.name to letters." in capsys.readouterr().out


@pytest.mark.parametrize("code", ["import pipeline.stages.ingest", "from pipeline.stages.ingest import *; run(PARAMS)"])
def test_the_process_imports_no_more_than_it_uses(code: str) -> None:
    heavy = ("PIL", "great_expectations", "keras", "mlflow", "pandas", "pooch", "prefect", "requests", "tensorflow")
    script = (
        "import sys\nfrom pipeline.params import load_params\nfrom pathlib import Path\n"
        f"PARAMS = load_params()\n{code}\nprint(*sorted(set({heavy!r}) & set(sys.modules)))"
    )
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8").replace("name: fashion-mnist", "name: tiny")
    Path("params.yaml").write_text(text, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == ""


def test_dvc_notices_every_change_of_the_inputs(project: Project) -> None:
    """What is edited in `dataset.path` or `data/incoming/` is never answered from a cache."""

    def ingest_again() -> list[str]:
        return stages_that_ran(project.repro("ingest").stdout)

    batch, train = project.path / "data/incoming/b.npz", project.path / TRAIN
    assert ingest_again() == ["ingest"]
    assert ingest_again() == []
    np.savez(batch, images=np.zeros((1, 28, 28), np.uint8), labels=np.zeros(1, int))
    refused = project.repro("ingest", check=False)
    assert refused.returncode != 0
    assert "batch b.npz has no pointer" in refused.stdout
    project.run("dvc", "add", "data/incoming/b.npz")
    assert ingest_again() == ["ingest"]
    assert table.count_rows(train) == 2001
    np.savez(batch, images=np.zeros((2, 28, 28), np.uint8), labels=np.zeros(2, int))
    assert ingest_again() == ["ingest"]
    assert table.count_rows(train) == 2002


def test_local_files_with_swapped_labels_are_noticed(project: Project) -> None:
    project.repro("ingest")
    local = project.path / "data/local"
    shutil.copytree(project.path / "data/raw", local, dirs_exist_ok=True)
    project.set_params(**{"dataset.name": "fashion-mnist"})
    output = project.repro("ingest").stdout
    first = table.read_dataset(project.path / TRAIN).name
    assert first.startswith("fashion-mnist-local-")
    assert "warning: the files of the local directory data/local are not those of fashion-mnist" in output
    assert "Class names, licence (MIT) and that a mirrored image keeps its class are taken from its entry" in output
    labels = local / "train-labels-idx1-ubyte"
    swapped = np.frombuffer(labels.read_bytes()[8:], np.uint8)[::-1]
    idx.write(labels, swapped)
    assert stages_that_ran(project.repro("ingest").stdout) == ["ingest"]
    assert (table.read_images(project.path / TRAIN)[1] == swapped).all()
    assert table.read_dataset(project.path / TRAIN).name not in (first, "fashion-mnist")


def test_a_temporary_workspace_takes_every_batch_or_refuses(project: Project) -> None:
    """`dvc exp run --temp` copies what git knows: an untracked batch would be left out, and the run succeed."""
    project.repro("ingest")
    project.commit("lock")
    np.savez(project.path / "data/incoming/b.npz", images=np.zeros((1, 28, 28), np.uint8), labels=np.zeros(1, int))
    project.run("dvc", "add", "data/incoming/b.npz")
    refused = project.run("dvc", "exp", "run", "--temp", "--force", "ingest", check=False)
    assert refused.returncode != 0
    assert "does not have batch b.npz" in refused.stdout
    assert "git add" in refused.stdout
    project.run("git", "add", "data/incoming")
    taken = project.run("dvc", "exp", "run", "--temp", "ingest").stdout
    assert "2,001 images of 10 classes (2,000 official, 1 b.npz)" in taken


def labels_by_source() -> dict[str, list[int]]:
    """The labels of the training images that came from each source, in their order."""
    labels = table.read_images(TRAIN)[1].tolist()
    found: dict[str, list[int]] = {}
    for source, label in zip(sources(TRAIN), labels, strict=True):
        found.setdefault(source, []).append(label)
    return found


def test_a_window_keeps_the_newest_batches_and_a_sample_of_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    ingest.run(make_params())
    test, own = TEST.read_bytes(), table.read_ids(TRAIN)
    for number, name in enumerate("abc"):
        add_batch(f"{name}.npz", *tiny.generate(200, number + 50))
    ingest.run(make_params(window=2, window_older=0.25))
    kept = labels_by_source()
    assert list(kept) == ["official", "a.npz", "b.npz", "c.npz"]
    assert np.bincount(kept["official"], minlength=10).tolist() == [50] * 10  # a quarter of 200 in each class
    assert 25 < len(kept["a.npz"]) < 75
    assert len(kept["b.npz"]) == len(kept["c.npz"]) == 200
    assert "all of the newest batches, up to 2; 25% of each class of the rest" in capsys.readouterr().out
    assert TEST.read_bytes() == test
    ids = table.read_ids(TRAIN)
    assert [id_ for id_ in own if id_ in set(ids)] == ids[:500]

    first = digests()
    ingest.run(make_params(window=2, window_older=0.25))
    assert digests() == first

    add_batch("d.npz", *tiny.generate(200, 60))
    ingest.run(make_params(window=2, window_older=0.25))
    later = labels_by_source()
    assert table.read_ids(TRAIN)[: 500 + len(kept["a.npz"])] == ids[: 500 + len(kept["a.npz"])]  # the same sample
    assert len(later["b.npz"]) < 100  # now it is older
    assert len(later["c.npz"]) == len(later["d.npz"]) == 200


def test_a_window_without_batches_samples_what_came_with_the_dataset() -> None:
    ingest.run(make_params(window=1, window_older=0.5))
    assert {source: len(labels) for source, labels in labels_by_source().items()} == {"official": 1000}
    whole = make_params(window=1, window_older=1.0)
    ingest.run(whole)
    windowed = digests()
    ingest.run(make_params())
    assert digests() == windowed


def test_a_bad_batch_beyond_the_window_is_refused_too() -> None:
    add_batch("a.npz", np.zeros((1, 28, 28), np.uint8), np.full(1, 10))
    add_batch("b.npz", *tiny.generate(20, 5))
    with pytest.raises(DataError, match=r"batch a\.npz is refused"):
        ingest.run(make_params(window=1))


def draw_hats(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8), np.full(count, 10)


def test_an_added_class_gives_test_images_and_later_batches_move_none(capsys: pytest.CaptureFixture[str]) -> None:
    ingest.run(make_params())
    official = set(table.read_ids(TEST))
    catalog = Path("data/catalog/tiny.yaml")
    catalog.write_text(catalog.read_text() + "  - {en: Hat, ko: 모자, test_fraction: 0.2}\n")
    with pytest.raises(DataError, match=r"added class Hat has too few images(.|\n)*about 21 images"):
        ingest.run(make_params())
    images, labels = (np.concatenate(pair) for pair in zip(draw_hats(200, 0), tiny.generate(20, 4), strict=True))
    add_batch("hats.npz", images, labels)
    ingest.run(make_params())
    before = {path: table.read_ids(path) for path in (TRAIN, TEST)}
    assert table.read_dataset(TEST).classes[10:] == ("Hat",)
    assert official < set(before[TEST])
    assert {*sources(TEST)} == {"official", "hats.npz"}
    of_test = np.bincount(table.read_images(TEST)[1], minlength=11)
    assert of_test[:10].tolist() == [50] * 10  # batches' images of other classes are training images
    assert 25 < of_test[10] < 55
    assert f"({500:,} official, {of_test[10]} hats.npz)" in capsys.readouterr().out
    assert len(before[TRAIN]) + len(before[TEST]) == 2500 + 220

    more = draw_hats(100, 1)[0]
    add_batch("later.npz", np.concatenate([more, images[:100]]), np.full(200, 10))
    ingest.run(make_params())
    after = {path: table.read_ids(path) for path in (TRAIN, TEST)}
    assert all(after[path][: len(before[path])] == before[path] for path in before)
    train, test = ({id_[:40] for id_ in after[path]} for path in (TRAIN, TEST))
    assert not train & test
    ingest.run(make_params(window=1, window_older=0.5))
    assert table.read_ids(TEST) == after[TEST]
    assert 0 < len(labels_by_source()["hats.npz"]) < 220 - of_test[10]
