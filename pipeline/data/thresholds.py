"""The thresholds of `validate`: of params.yaml, else of the dataset's catalogue entry, else of every dataset."""

from dataclasses import fields

from pipeline.data.catalog import Entry
from pipeline.params import ValidateParams

# What holds for images of any kind. Balance, contrast and brightness differ between datasets: they are in the
# catalogue entry, or not checked.
FOR_EVERY_DATASET = ValidateParams(
    min_contrast=0.01,
    max_blank_fraction=0.01,
    max_duplicate_fraction=0.01,
    max_mirrored_fraction=0.01,
    min_pixel_range=0.1,
)
# The keys of `validate` that each expectation needs. Other expectations have no threshold: they hold for every dataset.
KEYS = {
    "pixel_range": ("min_pixel_range",),
    "class_separation": ("min_class_separation",),
    "mean": ("max_mean_shift",),
    "std": ("max_std_shift",),
    "class_balance": ("max_class_imbalance",),
    "blank_images": ("min_contrast", "max_blank_fraction"),
    "saturated_images": ("max_white", "max_saturated_fraction"),
    "duplicates_within_splits": ("max_duplicate_fraction",),
    "already_there": ("max_duplicate_fraction",),
    "mirrored_images": ("max_mirrored_fraction",),
}


def resolve_thresholds(params: ValidateParams, entry: Entry | None) -> ValidateParams:
    """Return the thresholds for a dataset. Those that are still None are unknown.

    Args:
        params: `validate` of params.yaml.
        entry: the catalogue's entry, for the images of a local directory that of `dataset.name`; None if there is none.
    """
    sources = [params, *([entry.validate] if entry else []), FOR_EVERY_DATASET]
    values = {}
    for field in fields(ValidateParams):
        given = [getattr(source, field.name) for source in sources]
        values[field.name] = next((value for value in given if value is not None), None)
    return ValidateParams(**values)


def list_missing(name: str, thresholds: ValidateParams) -> list[str]:
    """Return the keys of `validate` without which an expectation is not checked.

    Without its threshold, `class_balance` is a warning.
    """
    if name == "class_balance":
        return []
    return [key for key in KEYS.get(name, ()) if getattr(thresholds, key) is None]
