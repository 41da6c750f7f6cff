"""The commands in README and docs: executed by a test, or shown only for a reason, and accepted by the command line."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from typing import Any

import pytest
from typer.main import get_command

from pipeline.cli.__main__ import app
from tests.conftest import REPOSITORY
from tests.documentation import Block, find_claims, find_pages, parse_page, read_unclaimed_blocks

PAGES = find_pages()
EXECUTED, SHOWN = "sh", "console"
OF_DATA = {"csv", "ini", "json", "mermaid", "python", "text", "toml", "yaml"}
COMMAND = re.compile(
    r"^(?:\$ |\S+=\S+ )*(?:pipeline|make|dvc|mlflow|prefect|git|docker|curl|python|pytest) ", re.MULTILINE
)
# Why no test executes a block: one of these must apply to it. The text of the page says so, too.
REASONS = {
    "stays in the foreground": r"pipeline (up|serve|ui|review page|scale up|scale worker)\b"
    r"|mlflow (ui|server|models serve)\b|prefect (server|worker) start|mkdocs serve",
    "installs packages, runs tests, or takes minutes": r"^make \S+",
    "needs another machine, an account or a container engine": r"\b(docker|git clone|systemctl|ssh|sudo|uv tool)\b"
    r"|git push|https?://(?!127\.0\.0\.1|localhost)|s3://|postgresql://|\.lan\b|\b10\.0\.0\.",
    "downloads data": r"dataset\.name=mnist",
    "has a value to fill in": r"\b(NAME|VERSION|TAG|REF|YOUR)\b|=\.\.\.|TF_CONFIG|--trusted-network",
}
OPERATORS = {";", "&&", "||", "|", "&", "(", ")"}
INLINE = re.compile(r"(?<!`)`((?:pipeline|make) [^`]+)`(?!`)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def commands_of(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a block as words, without variables set in front of them, redirections and scripts."""
    code = re.sub(r"<<-?\s*'?(\w+)'?.*?^\1$", "", block.code.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL)
    for line in code.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in OPERATORS:
                while words and (words[0] in ("$", "env", "exec") or re.match(r"\w+=", words[0])):
                    words.pop(0)
                if words:
                    yield list(takewhile(lambda word: word not in (">", ">>"), words))
                words = []
            else:
                words.append(word)


def find_command(words: list[str]) -> tuple[Any, list[str], set[str]]:
    """Return the command that arguments of `pipeline` name, the other arguments, and the options of all its groups."""
    command, options = get_command(app), {"--help"}
    while True:
        options |= {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        commands = getattr(command, "commands", {})
        if not words or words[0] not in commands:
            return command, words, options
        command, words = commands[words[0]], words[1:]


@cache
def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_executed_or_shown_for_a_reason(page: str) -> None:
    blocks = parse_page(page)
    for block in blocks:
        if block.language not in (EXECUTED, SHOWN, *OF_DATA):
            assert not COMMAND.search(block.code), f"{block}: mark commands as `sh`, or as `console` if not executed"
        if block.language == SHOWN:
            reasons = [why for why, pattern in REASONS.items() if re.search(pattern, block.code, re.MULTILINE)]
            assert reasons, f"{block}: nothing keeps a test from executing these commands: mark them as `sh`"
    fenced = {line for block in blocks for line in range(block.line, block.line + block.code.count("\n"))}
    for number, line in enumerate((REPOSITORY / page).read_text().splitlines(), 1):
        if number not in fenced:
            assert not COMMAND.match(line.removeprefix("    ")) or not line.startswith("    "), (
                f"{page}:{number}: fence this command"
            )


def test_blocks_that_no_test_of_their_page_executes_are_found() -> None:
    """Those are executed by tests/e2e/test_documentation.py."""
    assert "README.md" in find_claims()
    assert read_unclaimed_blocks("README.md") == []
    found = {page for page in PAGES if any(block.language == EXECUTED for block in parse_page(page))}
    assert found == {page for page in found if page in find_claims() or read_unclaimed_blocks(page)}
    endless = re.compile(f"^({REASONS['stays in the foreground']})", re.MULTILINE)
    waiting = [str(block) for page in PAGES for block in read_unclaimed_blocks(page) if endless.search(block.code)]
    assert waiting == [], "such a command needs a test of the page that ends it; or a section has another title now"


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_blocks_exist(page: str) -> None:
    for block in parse_page(page):
        for words in commands_of(block) if block.language in (EXECUTED, SHOWN) else ():
            if words[0] == "pipeline":
                command, rest, _ = find_command(words[1:])
                try:
                    command.make_context(words[1], rest)  # parses and executes nothing
                except Exception as error:
                    raise AssertionError(f"{block}: {shlex.join(words)}: {error}") from error
            if words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= targets(), f"{block}: {shlex.join(words)}"
            if words[:2] == ["python", "-m"]:
                assert find_spec(words[2]), f"{block}: {shlex.join(words)}"


# Decisions stay as they were made, also when their commands are gone.
@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("docs/decisions/")])
def test_the_commands_in_sentences_and_tables_exist(page: str) -> None:
    for text in INLINE.findall((REPOSITORY / page).read_text()):
        program, *words = text.split()
        if program == "make":
            assert words[0] in targets(), f"{page}: {text}"
            continue
        command, rest, options = find_command(words)
        if command.name == "pipeline" and rest:
            is_example = f"def {rest[0]}(" in (REPOSITORY / page).read_text()  # docs/extending.md adds a command
            assert is_example or rest[0][0] in "-…." or rest[0].isupper(), f"{page}: {text}"
        assert set(OPTION.findall(text)) <= options, f"{page}: {text}"
