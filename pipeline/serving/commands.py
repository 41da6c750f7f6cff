"""The commands of the room `serving`."""

from pipeline.serving import score_command  # noqa: F401  importing a module adds its commands
