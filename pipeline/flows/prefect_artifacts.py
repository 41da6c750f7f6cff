"""The artifacts of flow runs: tables and reports in Prefect's pages."""

import re
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

IMAGE = re.compile(r"!\[([^]]*)\]\(([^)]*)\)")


def publish_report(report: Path, key: str, description: str) -> None:
    """Publish a Markdown file. Prefect has no access to its images: their paths are shown instead."""
    text = IMAGE.sub(rf"\1: `{report.parent.as_posix()}/\2`", report.read_text(encoding="utf-8"))
    create_markdown_artifact(text, key=key, description=description)
