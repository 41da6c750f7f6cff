"""The entry point of `pipeline`, and of `python -m pipeline.cli`."""

import gc
import sys

from rich.console import Console

# Importing a module of commands adds them to the application.
from pipeline.cli import (  # noqa: F401
    care,
    compare,
    lineage,
    monitor,
    notify,
    predict,
    registry,
    retrain,
    schedule,
    up,
    work,
)
from pipeline.cli.app import app
from pipeline.errors import PipelineError


def main() -> None:
    """Run the command line. What the reader can mend is printed without a traceback."""
    try:
        app()
    except (PipelineError, OSError) as error:
        from pipeline.stages.process import explain

        told = explain(error) if isinstance(error, OSError) else error
        Console(stderr=True).print(str(told), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(told.exit_code)
    finally:
        gc.freeze()  # or the interpreter searches all of MLflow and Prefect for cycles at its end: half a second


if __name__ == "__main__":
    main()
