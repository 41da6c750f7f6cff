"""The pages of the reference, made from the code: commands, parameters, and the modules of each package."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from typer.main import get_command

from pipeline.cli.__main__ import app
from pipeline.cli.app import PANELS
from pipeline.files import parse_yaml
from pipeline.params import params_schema
from pipeline.rooms import PACKAGE, find_rooms

SECTION = re.compile(r"^(Args|Returns|Yields|Raises):\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)  # of a docstring
MADE = "This page is made from the code each time `make docs` builds the site."


def create_pages() -> dict[str, str]:
    """Return the Markdown of the reference's pages, by their path in the site."""
    pages = {"reference/commands.md": describe_commands(), "reference/parameters.md": describe_parameters()}
    packages = [path.parent for path in sorted(PACKAGE.glob("*/__init__.py"))]
    for package in [PACKAGE, *packages]:
        pages[f"reference/modules/{package.name}.md"] = describe_package(package)
    return pages


def describe_commands() -> str:
    """Describe every command of `pipeline`, in the order of its help."""
    group: Any = get_command(app)
    lines = ["# Commands", f"{group.help} {MADE} `pipeline COMMAND --help` prints the same in a terminal."]
    for panel in PANELS:
        lines.append(f"## {panel}")
        for name in group.list_commands(None):
            if (command := group.commands[name]).rich_help_panel == panel and not command.hidden:
                lines += _describe_command(f"pipeline {name}", command)
    return "\n\n".join(lines) + "\n"


def _describe_command(name: str, command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter not in arguments and not parameter.hidden]
    words = [name, *(each.metavar or each.name.upper() for each in arguments), *(["[OPTIONS]"] if options else [])]
    yield f"### `{name}`"
    yield f"```text\n{' '.join(words)}\n```"
    yield command.help or ""
    if rows := [_describe_option(parameter) for parameter in (*arguments, *options)]:
        yield "| argument or option | default | meaning |\n|---|---|---|\n" + "\n".join(rows)
    for part, child in getattr(command, "commands", {}).items():
        yield from _describe_command(f"{name} {part}", child)


def _describe_option(parameter: Any) -> str:
    choices = get_args(parameter.type_descriptor.annotation)
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
    else:
        value = "" if parameter.is_flag else f" {parameter.metavar or '|'.join(map(str, choices)) or 'VALUE'}"
        name = " / ".join([*parameter.opts, *parameter.secondary_opts]) + value
    default = "" if parameter.default in (None, "", ()) or parameter.is_flag else f"`{parameter.default}`"
    return _row(f"`{name}`", "required" if parameter.required else default, parameter.help or "")


def describe_parameters() -> str:
    """Describe every key of `params.yaml`, from its schema."""
    schema, values = params_schema(), parse_yaml((PACKAGE.parent / "params.yaml").read_bytes())
    definitions = schema["$defs"]
    lines = ["# Parameters", "Every key of `params.yaml`, with this project's value. Unknown keys are refused."]
    lines.append(f"{MADE} `pipeline schema` prints the same as a JSON Schema, which editors can check the file with.")
    for section, value in schema["properties"].items():
        definition = definitions[_referenced(value)]
        rows = []
        for key, described in definition["properties"].items():
            present = section != "presets" and key in values[section]
            current = f"`{values[section][key]}`".replace("None", "null") if present else ""
            rows.append(_row(f"`{key}`", current, _describe_type(described), _describe_meaning(described)))
        lines += [f"## `{section}`", definition.get("description", "")]
        lines.append("| key | value | allowed | meaning |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(lines) + "\n"


def _referenced(value: dict[str, Any]) -> str:
    reference = value.get("$ref") or value["additionalProperties"]["$ref"]
    return str(reference).rpartition("/")[2]


def _describe_meaning(described: dict[str, Any]) -> str:
    alternatives = [each["description"] for each in described.get("anyOf", ()) if "description" in each]
    own = described.get("description", "")
    return "; ".join([*alternatives, own]) if own and alternatives else own or "; ".join(alternatives)


def _describe_type(described: dict[str, Any]) -> str:
    if "anyOf" in described:
        return " or ".join(map(_describe_type, described["anyOf"]))
    if "enum" in described:
        return ", ".join(f"`{value}`" for value in described["enum"])
    if "const" in described:
        return f"`{described['const']}`"
    if "$ref" in described:
        return _referenced(described)
    if described.get("type") == "array":
        return f"list of {_describe_type(described.get('items', {}))}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {described[name]}" for name, sign in bounds.items() if name in described]
    return " ".join([described.get("type", "any"), ", ".join(limits)]).strip()


def describe_package(package: Path) -> str:
    """Describe the modules of a package, with the docstrings of their public functions and classes."""
    title = "pipeline" if package == PACKAGE else f"pipeline.{package.name}"
    kind = "a room, which a copy may delete" if package.name in find_rooms() else "core"
    if package == PACKAGE:
        kind = "the ground, which everything imports"
    lines = [f"# `{title}`", f"{_docstring(package / '__init__.py')}\n\nThis package is {kind}."]
    for path in sorted(package.glob("*.py") if package == PACKAGE else package.rglob("*.py")):
        if path.name in ("__init__.py", "__main__.py"):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        lines += [f"## `{name}`", _format_docstring(ast.get_docstring(tree) or "")]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                lines += _describe_definition(node)
    return "\n\n".join(filter(None, lines)) + "\n"


def _describe_definition(node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        signature = f"{node.name}({ast.unparse(node.args)}){result}"
    else:
        signature = f"class {node.name}"
    yield f"```python\n{signature}\n```"
    yield _format_docstring(ast.get_docstring(node) or "")


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""


def _format_docstring(text: str) -> str:
    """Turn the sections of a docstring (`Args:`, `Raises:`) into lists of Markdown."""

    def list_entries(match: re.Match[str]) -> str:
        entries = re.sub(r"\n {2,}", " ", inspect.cleandoc(match[2]))
        entries = re.sub(r"^(\w+):", r"`\1`:", entries, flags=re.MULTILINE)
        return f"\n*{match[1]}*\n\n" + "".join(f"- {entry}\n" for entry in entries.splitlines())

    return SECTION.sub(list_entries, f"{text}\n")


def _row(*cells: str) -> str:
    return "| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", r"\|") for cell in cells) + " |"
