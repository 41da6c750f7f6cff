"""The pictures in docs/images are small."""

from tests.conftest import REPOSITORY

LARGEST = 150_000  # bytes


def test_pictures_are_small() -> None:
    pictures = list((REPOSITORY / "docs/images").glob("*.png"))
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > LARGEST] == []
