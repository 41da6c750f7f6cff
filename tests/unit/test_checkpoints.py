"""Checkpoints: what is read is what was written, and each training has a name of its own."""

from pathlib import Path

import numpy as np

from pipeline.models.checkpoints import Checkpoint, Snapshot, derive_key


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, np.int64), np.zeros(0, np.float32)]
    history = [{"epoch": 1, "loss": 0.1 + 0.2, "restored": False}]
    checkpoint = Checkpoint(tmp_path / "deep" / "training.npz")
    assert checkpoint.load() is None
    for snapshot in (Snapshot(arrays, arrays[:1], []), Snapshot(arrays[::-1], arrays[1:], history)):
        checkpoint.save(snapshot)
        loaded = checkpoint.load()
        assert loaded
        assert loaded.history == snapshot.history
        for mine, its in ((loaded.variables, snapshot.variables), (loaded.best, snapshot.best)):
            assert [(a.dtype, a.shape, a.tobytes()) for a in mine] == [(a.dtype, a.shape, a.tobytes()) for a in its]
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["training.npz"]
    checkpoint.remove()
    assert checkpoint.load() is None


def test_a_key_changes_with_everything_that_determines_the_result(tmp_path: Path) -> None:
    data, code, elsewhere = (tmp_path / name for name in ("data", "code", "elsewhere"))
    data.write_text("images")
    code.write_text("loop")
    elsewhere.write_text("images")
    key = derive_key({"seed": 1, "threads": 2}, [data, code])
    assert derive_key({"threads": 2, "seed": 1}, [elsewhere, code]) == key
    others = [
        derive_key({"seed": 2, "threads": 2}, [data, code]),
        derive_key({"seed": 1, "threads": 4}, [data, code]),
        derive_key({"seed": 1, "threads": 2}, [code, data]),
    ]
    data.write_text("other images")
    others.append(derive_key({"seed": 1, "threads": 2}, [data, code]))
    assert len({key, *others}) == 5
