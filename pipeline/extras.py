"""Packages that the core does not install: those of the extras in pyproject.toml, which `make extras` installs."""

from importlib.util import find_spec

from pipeline.errors import WorkspaceError


def require_packages(user: str, *modules: str) -> None:
    """Refuse to continue without packages of an extra. Imports none of them.

    Args:
        user: what needs them, for the message.
        modules: the names under which they are imported.

    Raises:
        WorkspaceError: one or more of them are not installed.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        raise WorkspaceError(f"{user} needs {' and '.join(missing)}", found="not installed", remedy="make extras")
