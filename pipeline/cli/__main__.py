"""The entry point of `pipeline`, and of `python -m pipeline.cli`."""

import atexit
import sys
from importlib import import_module

from pipeline.cli import compare, data, predict, registry, work  # noqa: F401  importing a module adds its commands
from pipeline.cli.app import app
from pipeline.errors import PipelineError
from pipeline.garbage_collection import collect_rarely
from pipeline.process_lifetime import exit_now
from pipeline.proxies import bypass_proxy
from pipeline.rooms import find_rooms
from pipeline.safe_console import SafeConsole

for name in find_rooms():
    import_module(f"pipeline.{name}.commands")


def main() -> None:
    """Run the command line. Errors that the user can fix are printed without a traceback."""
    collect_rarely()
    bypass_proxy()
    try:
        app()
    except (PipelineError, OSError) as error:
        from pipeline.stages.entrypoint import explain

        told = explain(error) if isinstance(error, OSError) else error
        SafeConsole(stderr=True).print(str(told), style="red", soft_wrap=True)
        sys.exit(told.exit_code)
    finally:
        if colorama := sys.modules.get("colorama.initialise"):
            # DVC's import has it reset the colours of standard output at exit, which was a spinner's during the import.
            atexit.unregister(colorama.reset_all)
        exit_now()


if __name__ == "__main__":
    main()
