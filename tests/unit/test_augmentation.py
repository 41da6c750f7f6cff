"""Random choices: functions of seed and epoch alone, and what they do to pixels."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.models.augmentation import augment, draw_choices
from pipeline.params import TrainSettings, load_params
from tests.conftest import REPOSITORY

PLAIN = replace(load_params(REPOSITORY / "params.yaml").train.settings, flip=False, shift=0, erase=0)
ALL = replace(PLAIN, flip=True, shift=2, erase=5, erase_share=0.5)
IMAGES = np.random.default_rng(0).integers(1, 256, (64, 9, 7), np.uint8)


def draw(settings: TrainSettings, images: int = 1000, seed: int = 1, epoch: int = 1) -> dict[str, np.ndarray]:
    return draw_choices(settings, (images, 9, 7), 64, seed=seed, epoch=epoch)


def apply(**choices: object) -> np.ndarray:
    return augment(IMAGES, {name: np.array(value, np.int32) for name, value in choices.items()}).numpy()


def test_an_epoch_shows_each_image_at_most_once_in_whole_batches() -> None:
    order = draw(PLAIN)["order"]
    assert order.shape == (15, 64)
    assert len(np.unique(order)) == order.size
    assert order.max() < 1000
    assert draw(PLAIN).keys() == {"order"}


def test_choices_are_repeated_by_the_same_key_and_differ_for_others() -> None:
    first = draw(ALL)
    for name, choice in draw(ALL).items():
        assert np.array_equal(choice, first[name])
    for other in (draw(ALL, seed=2), draw(ALL, epoch=2)):
        for name, choice in other.items():
            assert not np.array_equal(choice, first[name]), name


def test_streams_of_one_epoch_know_nothing_of_each_other() -> None:
    streams = [choice.reshape(960, -1).T for choice in draw(ALL).values()]
    correlations = np.corrcoef(np.concatenate(streams))
    unrelated = np.ones_like(correlations, bool)
    unrelated[4:, 4:] = False  # the sides of one rectangle belong together
    assert np.abs(correlations[unrelated & ~np.eye(len(correlations), dtype=bool)]).max() < 0.12


def test_each_image_is_mirrored_every_other_epoch() -> None:
    flips = []
    for epoch in (1, 2, 3):
        choices = draw(ALL, epoch=epoch, images=1024)
        flips.append(np.zeros(1024, int))
        flips[-1][choices["order"].ravel()] = choices["flip"].ravel()
    assert np.array_equal(flips[0], 1 - flips[1])
    assert np.array_equal(flips[0], flips[2])
    assert 0.4 < flips[0].mean() < 0.6


def test_the_choices_of_a_grey_image_and_of_its_colour_are_the_same() -> None:
    grey = draw(ALL)
    colour = draw_choices(ALL, (1000, 9, 7, 3), 64, seed=1, epoch=1)
    assert colour["erase"].shape == (15, 64, 7)
    for name in ("order", "flip", "shift"):
        assert np.array_equal(grey[name], colour[name])
    assert np.array_equal(grey["erase"][..., :4], colour["erase"][..., :4])


def test_colours_are_changed_as_each_channel_alone() -> None:
    images = np.random.default_rng(1).integers(0, 256, (64, 9, 7, 3), np.uint8)
    choices = {name: choice[0] for name, choice in draw_choices(ALL, (64, 9, 7, 3), 64, seed=1, epoch=1).items()}
    choices.pop("order")
    ground = (10, 20, 30)
    changed = augment(images, choices, ground).numpy()
    assert len(np.unique(choices["erase"][:, 4:], axis=0)) > 60  # a colour for each image
    for channel in range(3):
        boxes = choices["erase"][:, [0, 1, 2, 3, 4 + channel]]
        alone = augment(images[..., channel], choices | {"erase": boxes}, ground[channel]).numpy()
        assert np.array_equal(changed[..., channel], alone)


def test_translating_a_batch_brings_in_the_ground() -> None:
    moved = augment(IMAGES, {"shift": np.tile(np.int32([1, -2]), (64, 1))}, 200).numpy()
    assert np.array_equal(moved[:, 1:, :-2], IMAGES[:, :-1, 2:])
    assert (moved[:, 0] == 200).all()
    assert (moved[:, :, -2:] == 200).all()


def test_mirroring_a_batch() -> None:
    flip = np.arange(64) % 2
    mirrored = apply(flip=flip)
    assert np.array_equal(mirrored[flip == 1], IMAGES[flip == 1][:, :, ::-1])
    assert np.array_equal(mirrored[flip == 0], IMAGES[flip == 0])


def test_translating_a_batch_brings_in_black() -> None:
    shift = draw(ALL)["shift"][0]
    assert set(np.unique(shift)) == {-2, -1, 0, 1, 2}
    for image, moved, (down, right) in zip(IMAGES, apply(shift=shift), shift, strict=True):
        framed = np.pad(image, 2)
        assert np.array_equal(moved, framed[2 - down : 11 - down, 2 - right : 9 - right])


def test_erasing_a_batch_fills_rectangles() -> None:
    boxes = draw(ALL, images=64)["erase"][0]
    erased = apply(erase=boxes)
    heights, widths = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    assert {*heights, *widths} <= set(range(6))
    assert boxes.min() >= 0
    assert boxes[:, 1].max() <= 9
    assert boxes[:, 3].max() <= 7
    for image, result, (top, bottom, left, right, grey) in zip(IMAGES, erased, boxes, strict=True):
        wanted = image.copy()
        wanted[top:bottom, left:right] = grey
        assert np.array_equal(result, wanted)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_erased_images(share: float) -> None:
    boxes = draw(replace(ALL, erase_share=share), images=6400)["erase"]
    assert (boxes[..., 1] > boxes[..., 0]).mean() == pytest.approx(share, abs=0.03)
