"""Passages of a Markdown text that mention something are removed, and nothing else."""

import re

import pytest

from pipeline.mentions import remove_mentions
from tests.conftest import REPOSITORY

MENTION = re.compile("pipeline gone|gone\\.md")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("One. Run `pipeline gone`. Two.\n", "One. Two.\n"),
        ("하나입니다. `pipeline gone`을 실행합니다. 둘입니다.\n", "하나입니다. 둘입니다.\n"),
        ("# A\n\nRun `pipeline gone`.\n\n# B\n\nText.\n", "# B\n\nText.\n"),
        ("# A\n\n## Gone\n\nSee [it](gone.md).\n\n## B\n\nText.\n", "# A\n\n## B\n\nText.\n"),
        ("- one\n- `pipeline gone`\n- two\n", "- one\n- two\n"),
        ("- one. Run `pipeline gone`\n  twice. Then\n  rest.\n", "- one. Then rest.\n"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n| [x](gone.md) | 3 |\n", "| a | b |\n|---|---|\n| 1 | 2 |\n"),
        ("Text. The table:\n\n| a |\n|---|\n| gone.md |\n\nEnd.\n", "Text.\n\nEnd.\n"),
        (
            "Text.\n\n```sh\npipeline gone\n# a comment\npipeline run\n```\n",
            "Text.\n\n```sh\n# a comment\npipeline run\n```\n",
        ),
        ("Text.\n\nDo this:\n\n```sh\npipeline gone\n```\n\nEnd.\n", "Text.\n\nEnd.\n"),
        ("[A](a.md) ·\n[Gone](gone.md) · [B](b.md)\n", "[A](a.md) · [B](b.md)\n"),
        ("[A](a.md) · [Gone](gone.md)\n", "[A](a.md)\n"),
    ],
)
def test_a_passage_is_removed(before: str, after: str) -> None:
    assert remove_mentions(MENTION, before) == after


@pytest.mark.parametrize("page", [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")], ids=lambda page: page.name)
def test_a_text_without_mentions_keeps_its_bytes(page: object) -> None:
    text = page.read_text()  # type: ignore[attr-defined]
    assert remove_mentions(re.compile("no such words anywhere"), text) == text
