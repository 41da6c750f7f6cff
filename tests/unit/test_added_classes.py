"""The test images of a class that batches added."""

from pipeline.data import added_classes, tiny


def test_the_share_of_an_added_class_is_drawn_by_pixels() -> None:
    images, labels = tiny.generate(2000, 3)
    is_test = added_classes.choose_test(images, labels, {4: 0.25})
    assert not is_test[labels != 4].any()
    assert 0.15 < is_test[labels == 4].mean() < 0.35
    again = added_classes.choose_test(images[::-1], labels[::-1], {4: 0.25})[::-1]
    assert (again == is_test).all()  # neither the order nor the other images count
    larger = added_classes.choose_test(images, labels, {4: 0.5})
    assert larger[is_test].all()
    assert added_classes.choose_test(images, labels, {}).sum() == 0


def test_the_draw_of_an_image_never_changes() -> None:
    assert added_classes.draw_test(["0" * 40]).tolist() == [11732709125033846384]
    assert [added_classes.share_of_range(share) for share in (0.5, 1.0)] == [2**63 - 1, 2**64 - 1]
