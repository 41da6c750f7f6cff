"""Figures show what they were given, and are the same bytes for everybody."""

import struct
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation import figures
from pipeline.evaluation.calibration import Bin

CONFUSION = np.array([[90, 10, 0], [5, 95, 0], [0, 40, 60]])
CLASSES = ("T-shirt/top", "Trouser", "Ankle boot")
BINS = [Bin(0.4, 0.6, 10, 0.5, 0.4), Bin(0.8, 1.0, 30, 0.95, 0.97)]


def draw_all(directory: Path) -> list[bytes]:
    directory.mkdir(exist_ok=True)
    mistake = figures.Mistake(np.eye(28, dtype=np.uint8) * 255, "Shirt", "Coat", 0.987)
    figures.draw_confusion(directory / "confusion.png", CONFUSION, CLASSES)
    figures.draw_reliability(directory / "reliability.png", BINS)
    figures.draw_gallery(directory / "gallery.png", [mistake] * 7)
    figures.draw_saliency(directory / "saliency.png", [mistake] * 7, [np.eye(28, dtype=np.float32)] * 7)
    return [path.read_bytes() for path in sorted(directory.iterdir())]


def chunks(png: bytes) -> set[str]:
    """The kinds of blocks that a PNG file consists of."""
    kinds, position = set(), 8
    while position < len(png):
        length, kind = struct.unpack(">I4s", png[position : position + 8])
        kinds.add(kind.decode())
        position += length + 12
    return kinds


def test_a_readers_own_settings_change_nothing(tmp_path: Path) -> None:
    plain = draw_all(tmp_path / "a")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 30, "image.cmap": "hot"}):
        assert draw_all(tmp_path / "b") == plain
        assert matplotlib.rcParams["font.size"] == 20


def test_no_text_or_time_is_hidden_in_the_files(tmp_path: Path) -> None:
    for png in draw_all(tmp_path):
        assert chunks(png) == {"IHDR", "pHYs", "IDAT", "IEND"}


def test_other_data_gives_another_figure(tmp_path: Path) -> None:
    for name, confusion in (("a.png", CONFUSION), ("b.png", CONFUSION.T)):
        figures.draw_confusion(tmp_path / name, confusion, CLASSES)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_the_gallery_shows_each_image_in_its_proportions(tmp_path: Path) -> None:
    black = np.full((20, 10), 255, np.uint8)
    figures.draw_gallery(tmp_path / "g.png", [figures.Mistake(black, "", "", 0.9)])
    dark = np.array(Image.open(tmp_path / "g.png").convert("L")) < 10
    columns = np.flatnonzero(dark.mean(axis=0) > 0.3)
    rows = np.flatnonzero(dark[:, columns].all(axis=1))
    assert len(rows) / len(columns) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("mistakes", [0, 1, 24])
def test_a_gallery_grows_with_the_mistakes(tmp_path: Path, mistakes: int) -> None:
    mistake = figures.Mistake(np.zeros((28, 28), np.uint8), "Shirt", "Coat", 0.9)
    figures.draw_gallery(tmp_path / "g.png", [mistake] * mistakes)
    _, height = Image.open(tmp_path / "g.png").size
    assert (height > 700) == (mistakes == 24)


@pytest.mark.parametrize("classes", [2, 31])
def test_a_confusion_of_any_number_of_classes_can_be_drawn(tmp_path: Path, classes: int) -> None:
    names = [f"{label} or another very long name" for label in range(classes)]
    figures.draw_confusion(tmp_path / "c.png", np.eye(classes, dtype=int), names)
    assert min(Image.open(tmp_path / "c.png").size) > 500


def test_names_are_no_formulas(tmp_path: Path) -> None:
    figures.draw_confusion(tmp_path / "c.png", CONFUSION, ("bags, $1 or $2", r"$\nonsense$", "^_"))
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_a_class_without_images_can_be_drawn(tmp_path: Path) -> None:
    figures.draw_confusion(tmp_path / "c.png", np.array([[3, 1], [0, 0]]), ("a", "b"))
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_of_many_classes_the_most_confused_are_drawn(tmp_path: Path) -> None:
    confusion = np.eye(300, dtype=int) * 50
    confusion[299, 7] = confusion[120, 121] = 9
    shown = figures.find_confused_classes(confusion, figures.MOST_CLASSES)
    assert len(shown) == figures.MOST_CLASSES
    assert {7, 120, 121, 299} <= set(shown)
    figures.draw_confusion(tmp_path / "c.png", confusion, [f"class {label}" for label in range(300)])
    assert max(Image.open(tmp_path / "c.png").size) < 2000


def test_saliency_is_red_where_it_is_positive() -> None:
    saliency = np.array([[0.0, -2.0, 1.0, 2.0]])
    for image in (np.full((1, 4), 100, np.uint8), np.full((1, 4, 3), 155, np.uint8)):
        first, negative, weak, strong = figures.mark_pixels(image, saliency)[0].astype(int)
        assert (np.stack([first, negative]) == 155).all()
        assert strong[0] > weak[0] > 155
        assert strong[1] < weak[1] < 155
    assert (figures.mark_pixels(np.full((1, 4), 100, np.uint8), -np.ones((1, 4))) == 155).all()


def test_a_mistake_is_drawn_in_its_colours(tmp_path: Path) -> None:
    orange = np.full((24, 40, 3), (250, 120, 10), np.uint8)
    figures.draw_gallery(tmp_path / "g.png", [figures.Mistake(orange, "a", "b", 0.9)])
    pixels = np.asarray(Image.open(tmp_path / "g.png").convert("RGB")).reshape(-1, 3)
    assert (pixels == (250, 120, 10)).all(axis=1).sum() > 5000
