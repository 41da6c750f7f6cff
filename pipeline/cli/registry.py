"""Commands for registered models: versions, alias history, promotion and rollback."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.app import REGISTRY, command, console, enter_workspace, print_json
from pipeline.errors import TrackingError

if TYPE_CHECKING:
    from pipeline.registry.alias_history import Move
    from pipeline.registry.versions import Version

MODEL_OPTION = typer.Option("--model", metavar="NAME", help="The registered model; by default the current dataset's.")
REASON_OPTION = typer.Option("--reason", metavar="REASON", help="The reason, for readers of the history.")
JSON_OPTION = typer.Option("--json", help="Print JSON instead of a table.")
UNLIMITED = 10_000  # columns
HISTORY_WIDTH = 110  # columns that the table of the history needs; below, each value has its own line
STYLES = {"champion": "bold green", "challenger": "cyan", "external": "yellow", "rollback": "red"}


@command(REGISTRY, 10)
def versions(
    model: Annotated[str | None, MODEL_OPTION] = None,
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """List the registered versions with accuracy, data, commit and decision.

    The accuracy is measured on the test images, with its 95 % interval. An asterisk means that the working tree
    differed from the commit. A narrow terminal shows fewer columns, or one value on a line.

    Examples:

        pipeline versions
        pipeline versions --model fashion-mnist --json
    """
    with _registry(model) as (client, name):
        from pipeline.registry.aliases import recover
        from pipeline.registry.versions import list_versions

        found = list_versions(client, name, recover(client, name).aliases)
    if as_json:
        print_json({"name": name, "versions": [asdict(version) for version in found]})
        return
    if not found:
        console.print(f"{name} has no version: pipeline run")
        return
    _print_versions(found)


@command(REGISTRY, 30)
def history(
    model: Annotated[str | None, MODEL_OPTION] = None,
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Show the history of alias moves: when, who, from, to, why.

    Moves made in MLflow's pages or by other programs are `external`, with the time of their detection. A narrow
    terminal shows one value on a line.

    Examples:

        pipeline history
        pipeline history --json
    """
    with _registry(model) as (client, name):
        from pipeline.registry.aliases import read_history

        moves = read_history(client, name)
    if as_json:
        print_json({"name": name, "moves": [asdict(move) for move in moves]})
        return
    if not moves:
        console.print(f"no alias of {name} was ever moved")
        return
    from pipeline.flows.terminal import create_grid

    names = ("when", "who", "what", "alias", "from", "to", "why")
    columns = [Column(name, overflow="fold") for name in names]
    table = Table(Column("", justify="right"), *columns, box=SIMPLE_HEAD)
    for move in moves:
        what = Text(move.kind, STYLES.get(move.kind, "")) if move.state == "done" else Text(move.state, "dim")
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(move.when / 1000))
        alias = Text(move.alias, STYLES.get(move.alias, ""))
        row = (when, Text(move.who), what, alias, move.origin or "-", move.target or "-", Text(move.reason))
        if console.width < HISTORY_WIDTH:
            console.print(Text(f"move {move.number}", "bold"))
            console.print(create_grid(zip((f"  {name}" for name in names), row, strict=True)))
        table.add_row(str(move.number), *row)
    if console.width >= HISTORY_WIDTH:
        console.print(table)


@command(REGISTRY, 40)
def promote(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Number of the version.")],
    reason: Annotated[str, REASON_OPTION],
    model: Annotated[str | None, MODEL_OPTION] = None,
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Make a version the champion, regardless of the champion rule. A rejected version is refused.

    If another process moves the champion first, nothing is moved, and the exit code is 1.

    Examples:

        pipeline promote 4 --reason "best on the shop's own photographs"
        pipeline promote 4 --reason "..." --model fashion-mnist
    """
    with _registry(model) as (client, name):
        from pipeline.registry import promotion

        move = promotion.promote(client, name, version, reason=_require(reason))
    _print_move(name, move, as_json)


@command(REGISTRY, 50)
def rollback(
    reason: Annotated[str, REASON_OPTION],
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="A former champion; by default the previous one.")
    ] = None,
    model: Annotated[str | None, MODEL_OPTION] = None,
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Make the previous champion the champion again. Versions that were rolled back from are skipped.

    If this command is killed in the middle, the next one completes the move.

    Examples:

        pipeline rollback --reason "takes bags for shirts since Monday"
        pipeline rollback --to 2 --reason "the last that knew sandals"
    """
    with _registry(model) as (client, name):
        from pipeline.registry import promotion

        move = promotion.rollback(client, name, to=to, reason=_require(reason))
    _print_move(name, move, as_json)


def _print_versions(found: "list[Version]") -> None:
    """Print versions as a table, a table without data and commit, or a list, depending on the terminal's width."""
    rows = [_cells(version) for version in found]
    names = ("version", "aliases", "accuracy", "data", "commit", "age", "decision")
    for left_out in ((), ("data", "commit")):
        shown = [place for place, name in enumerate(names) if name not in left_out]
        table = Table(
            *(Column(names[place], justify="right" if not place else "left") for place in shown), box=SIMPLE_HEAD
        )
        for row in rows:
            table.add_row(*(row[place] for place in shown))
        if console.measure(table, options=console.options.update_width(UNLIMITED)).maximum <= console.width:
            console.print(table)
            return
    for number, aliases, *others in rows:
        console.print(Text.assemble((f"version {number} ", "bold"), aliases))
        for name, text in zip(names[2:], others, strict=True):
            console.print(f"  {name:8} {text}")


def _cells(version: "Version") -> tuple[str, Text, str, str, str, str, str]:
    accuracy = "-" if version.accuracy is None else f"{version.accuracy:.2%}"
    if version.accuracy_low is not None and version.accuracy_high is not None:
        accuracy += f" ({version.accuracy_low:.2%} to {version.accuracy_high:.2%})"
    aliases = Text(", ").join(Text(alias, STYLES.get(alias, "")) for alias in version.aliases)
    commit = f"{version.commit[:10]}{'*' if version.dirty else ''}" if version.commit else "-"
    data = version.data[:8] if version.data else "-"
    decision = version.decision or "not judged"
    return str(version.number), aliases, accuracy, data, commit, _age(version.created), decision


@command(REGISTRY, 85)
def export(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A version or an alias, such as champion.")],
    model: Annotated[str | None, MODEL_OPTION] = None,
) -> None:
    """Add model.tflite and its contract to a version that was registered without them.

    Release 0.1.0 registered model.keras only. TensorFlow, which is slow to start, loads such a version until it is
    exported. Its model.keras, its aliases and its decision stay as they are. The answers of both files are compared on
    the validation images of its training, which must be in data/splits/.

    Examples:

        pipeline export 3
        pipeline export champion --model fashion-mnist
    """
    workspace = enter_workspace()
    from pipeline.registry.add_exported_model import export_version

    with console.status("converting the model"):
        found, contract = export_version(workspace, version, model)
    subject = f"{found.name} version {found.version}"
    if contract is None:
        console.print(f"{subject} has an exported model already")
        return
    check = contract.check
    console.print(
        f"{subject} is exported: on {check.images:,} validation images, its answers differ by at most "
        f"{check.largest_difference:.0e} from those of model.keras"
    )


@contextmanager
def _registry(model: str | None) -> Iterator[tuple[Any, str]]:
    """Open this checkout's registry: MLflow's client, and the name of the registered model."""
    workspace = enter_workspace()
    from pipeline.registry.registration import current_name, open_registry
    from pipeline.tracking.store import explained

    name = model or current_name(workspace)
    store, client = open_registry(workspace)
    with explained(store):
        yield client, name


def _require(reason: str) -> str:
    if not reason.strip():
        raise TrackingError("the reason is empty", expected="--reason TEXT, for readers of the history")
    return reason.strip()


def _print_move(name: str, move: "Move", as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "move": asdict(move)})
        return
    dropped = sorted(move.before.keys() - move.after.keys())
    console.print(f"{name}: {move}" + (f"; it is no longer {dropped[0]}" if dropped else ""))
    console.print(f"move {move.number} of its history, by {move.who}: {move.reason}", markup=False, soft_wrap=True)


def _age(since: int) -> str:
    """Format the time since then in the largest unit of which there is at least one."""
    seconds = max(0, time.time() - since / 1000)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
