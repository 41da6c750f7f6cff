"""Python's garbage collector, adjusted for processes that import large packages and end soon."""

import atexit
import gc

# Allocations between two collections of the young objects, then how many of these precede one of older objects.
# Python's defaults are 700, 10 and 10.
THRESHOLDS = 100_000, 50, 100


def collect_rarely() -> None:
    """Collect garbage rarely, and not at the end of the process. Call it before large imports.

    During the import of TensorFlow, MLflow, Prefect or Great Expectations, the collector takes a quarter to a half of
    the time and finds nothing, and at the end of the process it would search all their objects again.
    """
    gc.set_threshold(*THRESHOLDS)
    atexit.register(gc.freeze)
