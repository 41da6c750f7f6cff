"""The commands in README and docs: `sh` blocks are executed by tests, `console` blocks are only shown.

A test that executes blocks of a page reads them by `read_blocks("docs/page.md")`, or one section of the page by
`read_blocks("docs/page.md", "Section")`. tests/e2e/test_documentation.py executes all others.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CLAIM = re.compile(r"\bread_blocks\(\s*\"([^\"]+)\"(?:,\s*\"([^\"]*)\")?")
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<language>\S*)")
HEADING = re.compile(r"^#+ (?P<title>.+?)\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int  # of its first line, for messages
    section: str  # the title of the nearest heading above
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def find_pages() -> list[str]:
    """Return the paths of README (in all languages), CONTRIBUTING and docs, relative to the repository."""
    found = [*REPOSITORY.glob("README*.md"), REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("docs/**/*.md")]
    return sorted(str(path.relative_to(REPOSITORY)) for path in found if path.is_file())


@cache
def parse_page(page: str) -> list[Block]:
    """Return all fenced blocks of a page in their order."""
    return list(_parse(page, (REPOSITORY / page).read_text("utf-8")))


def read_blocks(page: str, section: str | None = None, language: str = "sh") -> list[str]:
    """Return the code of a page's blocks in their order, without an indentation.

    Args:
        page: its path, relative to the repository.
        section: the title of the nearest heading above the blocks. None: the whole page.
        language: of the blocks.
    """
    blocks = parse_page(page)
    assert section is None or section in {block.section for block in blocks}, f"{page} has no section {section}"
    return [block.code for block in blocks if block.language == language and section in (None, block.section)]


@cache
def find_claims() -> dict[str, set[str | None]]:
    """Return the sections of each page that the tests of that page execute. None: all of its sections."""
    claims: dict[str, set[str | None]] = {}
    for file in (REPOSITORY / "tests").rglob("test_*.py"):
        for page, section in CLAIM.findall(file.read_text("utf-8")):
            claims.setdefault(page, set()).add(section or None)
    return claims


def read_unclaimed_blocks(page: str) -> list[Block]:
    """Return the `sh` blocks of a page that no test of that page executes."""
    claimed = find_claims().get(page, set())
    return [
        block
        for block in parse_page(page)
        if block.language == "sh" and None not in claimed and block.section not in claimed
    ]


def _parse(page: str, text: str) -> Iterator[Block]:
    section, opened, code = "", None, []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None:
            if fence:
                opened, code, start = fence, [], number + 1
            elif heading := HEADING.match(line):
                section = heading["title"]
        elif fence and not fence["language"] and len(fence["fence"]) >= len(opened["fence"]):
            yield Block(page, start, section, opened["language"], "".join(f"{one}\n" for one in code))
            opened = None
        else:
            code.append(line.removeprefix(opened["indent"]))
    assert opened is None, f"{page}:{start}: a block without an end"
