"""Where a threshold of `validate` comes from."""

from dataclasses import fields, replace

from pipeline.data.catalog import CATALOG, load_entry
from pipeline.data.thresholds import FOR_EVERY_DATASET, KEYS, list_missing, resolve_thresholds
from pipeline.params import ValidateParams
from tests.conftest import REPOSITORY

FASHION = load_entry("fashion-mnist", REPOSITORY / CATALOG)


def test_params_come_before_the_entry_and_the_entry_before_every_dataset() -> None:
    entry = replace(FASHION, validate=ValidateParams(min_contrast=0.04, max_white=0.5))
    params = ValidateParams(min_contrast=0.0)
    expected = replace(FOR_EVERY_DATASET, min_contrast=0.0, max_white=0.5)
    assert resolve_thresholds(params, entry) == expected
    assert resolve_thresholds(params, None) == replace(expected, max_white=None)


def test_an_expectation_without_one_of_its_thresholds_is_not_checked() -> None:
    unknown = resolve_thresholds(ValidateParams(max_white=0.5), None)
    assert list_missing("saturated_images", unknown) == ["max_saturated_fraction"]
    assert list_missing("class_balance", unknown) == list_missing("labels", unknown) == []


def test_fashion_mnist_is_checked_for_everything() -> None:
    thresholds = resolve_thresholds(ValidateParams(), FASHION)
    assert not [name for name in KEYS if list_missing(name, thresholds)]
    assert {key for keys in KEYS.values() for key in keys} == {field.name for field in fields(ValidateParams)}
