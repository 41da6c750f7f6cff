"""Remove the passages of a Markdown text that mention deleted commands or files."""

import re
import textwrap

from markdown_it import MarkdownIt

WIDTH = 130  # characters a line, of README and docs
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z가-힣`*\[])|(?<= ·)\s+")  # `·` separates links in one line
LINE_START = re.compile(r"\s*(?:(?:-|\d+\.)\s+)?")  # indentation, and the mark of a list item
MARKDOWN = MarkdownIt("commonmark").enable("table")


def remove_mentions(mention: re.Pattern[str], text: str) -> str:
    """Remove the sentences, list items, table rows and lines of code blocks that match a pattern.

    If a table or a code block is left empty, the sentence before it that ends with a colon is removed too. If a section
    is left empty, its heading is removed.
    """
    if not mention.search(text):
        return text
    lines = text.splitlines()
    kept: dict[tuple[int, int], list[str]] = {}  # first line and end of each changed block: its remaining lines
    previous = (0, 0)
    for token in MARKDOWN.parse(text):
        if not token.map or token.type not in ("paragraph_open", "table_open", "fence"):
            continue
        first, end = token.map
        block = lines[first:end]
        if token.type == "paragraph_open":
            rest = _filter_sentences(block, mention)
        elif token.type == "table_open":
            rest = _filter_lines(block, mention, head=2, foot=0)
        else:
            rest = _filter_lines(block, mention, head=1, foot=1)
        if not rest and token.type != "paragraph_open":
            kept[previous] = _remove_announcement(kept.get(previous, lines[slice(*previous)]))
        if rest != block:
            kept[first, end] = rest
        previous = first, end
    for (first, end), rest in sorted(kept.items(), reverse=True):
        _replace(lines, first, end, rest)
    return _remove_empty_sections(lines).strip("\n") + "\n"


def _replace(lines: list[str], first: int, end: int, rest: list[str]) -> None:
    """Replace a block of lines. If the block is removed, the blank line after it is removed too."""
    if not rest and lines[end : end + 1] == [""] and lines[first - 1 : first] in ([""], []):
        end += 1
    lines[first:end] = rest


def _filter_lines(block: list[str], mention: re.Pattern[str], *, head: int, foot: int) -> list[str]:
    """Remove matching lines between those that open and close a block. Returns an empty list if none is left."""
    middle = block[head : len(block) - foot]
    rest = [line for line in middle if not mention.search(line)]
    return [*block[:head], *rest, *block[len(block) - foot :]] if any(map(str.strip, rest)) else []


def _filter_sentences(block: list[str], mention: re.Pattern[str]) -> list[str]:
    sentences = SENTENCE_END.split(" ".join(map(str.strip, block)))
    rest = [sentence for sentence in sentences if not mention.search(sentence)]
    return block if rest == sentences else _wrap(rest, block[0])


def _remove_announcement(block: list[str]) -> list[str]:
    if not block or not block[-1].endswith(":"):
        return block
    return _wrap(SENTENCE_END.split(" ".join(map(str.strip, block)))[:-1], block[0])


def _wrap(sentences: list[str], first_line: str) -> list[str]:
    text = re.sub(r"^(?:-|\d+\.)\s+", "", " ".join(sentences)).removesuffix(" ·")
    if not text:
        return []
    start = LINE_START.match(first_line)[0]  # type: ignore[index]  # it matches the empty string too
    indent = " " * len(start)
    return textwrap.wrap(start + text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _remove_empty_sections(lines: list[str]) -> str:
    blocks = [token for token in MARKDOWN.parse("\n".join(lines)) if token.map and token.level == 0]
    next_level = 1  # of the heading that follows directly, or of the end; 0: content follows
    for block in reversed(blocks):
        level = int(block.tag[1]) if block.type == "heading_open" else 0
        if block.map and level and level >= next_level > 0:
            first, end = block.map
            _replace(lines, first, end, [])
        else:
            next_level = level
    return "\n".join(lines)
