"""The commands that tell where a version came from, and prove it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.cli.app import app, console, enter_workspace, print_json
from pipeline.cli.registry import MODEL_OPTION
from pipeline.cli.work import INTERRUPTED
from pipeline.errors import FAILURE

if TYPE_CHECKING:
    from pipeline.tracking.chain import Descendant, Link

EXIT_CODES = {"identical": 0, "equivalent": 3, "not reproduced": 4}
STYLES = {"identical": "green", "equivalent": "yellow", "not reproduced": "bold red"}

Version = Annotated[str, typer.Argument(help="Number of the version, or an alias such as champion.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")]


@app.command()
def lineage(
    version: Annotated[
        str | None, typer.Argument(help="Number of the version, or an alias such as champion.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="Find the versions that came from this data.")
    ] = None,
    commit: Annotated[
        str | None, typer.Option(metavar="SHA", help="Find the versions that came from this commit.")
    ] = None,
    model: Annotated[str | None, MODEL_OPTION] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a version came from: run, code, params, environment, data, validation, evaluation, decision.

    Backwards too: --data takes the MD5 of anything in dvc.lock or in a batch's pointer, --commit a commit's SHA-1,
    and the first characters do.

    Examples:

        pipeline lineage 3
        pipeline lineage champion --json
        pipeline lineage --data 683d9031
        pipeline lineage --commit e5d431e
    """
    if sum(given is not None for given in (version, data, commit)) != 1:
        raise typer.BadParameter("give one of: a version, --data, --commit")
    workspace = enter_workspace()
    from pipeline.tracking import chain

    with console.status("reading MLflow's records"):
        if version is not None:
            links = chain.read_chain(chain.trace(workspace, version, model))
        else:
            found = chain.find_by_data(workspace, data) if data else chain.find_by_commit(workspace, commit or "")
    if version is not None:
        print_json([asdict(link) for link in links]) if as_json else _print_chain(links)
    else:
        print_json([asdict(version) for version in found]) if as_json else _print_descendants(found)


@app.command()
def reproduce(version: Version, model: Annotated[str | None, MODEL_OPTION] = None, as_json: AsJson = False) -> None:
    """Make a version again from its record, in a checkout that is thrown away, and say whether it is the same.

    Exit code 0: identical, the model file is the same byte for byte.
    3: equivalent, the answers agree within the tolerance and the reason is known.
    4: not reproduced, and the first stage whose output differs is named.
    1: it could not be tried.

    Nothing in this checkout changes, nor does any alias. The verdict is kept on the version.

    Examples:

        pipeline reproduce 3
        pipeline reproduce champion --json
    """
    workspace = enter_workspace()
    from pipeline.flows.reproduce import reproduce as make_again

    try:
        reproduction = make_again(workspace, version, model, quiet=as_json)
    except KeyboardInterrupt:
        console.print("stopped: nothing is left running, and nothing was recorded")
        raise typer.Exit(INTERRUPTED) from None
    traced, verdict = reproduction.traced, reproduction.verdict
    if as_json:
        facts = {"name": traced.version.name, "version": str(traced.version.version), "seconds": reproduction.seconds}
        print_json(facts | asdict(verdict))
    else:
        table = Table("stage", "what happened", "its outputs", box=SIMPLE_HEAD)
        for stage in verdict.stages:
            differing = "\n".join(f"{difference.path}: {difference.how}" for difference in stage.differences)
            same = "as recorded" if stage.compared else "not recorded"
            table.add_row(stage.stage, stage.outcome, Text(differing or (same if stage.outcome == "ran" else "")))
        console.print(table)
        if any(stage.outcome == "failed" for stage in verdict.stages):
            for line in reproduction.last_lines:
                console.print(Text(f"  {line}", "dim"), soft_wrap=True)
        console.print(Text(f"{traced.label}: {verdict.outcome}", STYLES[verdict.outcome]))
        console.print(Text(verdict.reason), soft_wrap=True)
    raise typer.Exit(EXIT_CODES[verdict.outcome])


@app.command()
def verify(
    fast: Annotated[bool, typer.Option("--fast", help="Leave out the data and DVC's cache.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare registry, artifact store, outputs, dvc.lock and DVC's cache by digest. Nothing is loaded or changed.

    A model file that somebody altered, and a file of DVC's cache that is damaged, are found before anyone uses them.
    Every file is read. Exit code 1 when anything is wrong.

    Examples:

        pipeline verify
        pipeline verify --fast
    """
    workspace = enter_workspace()
    from rich.progress import track

    from pipeline.tracking.verify import verify as compare

    def show(objects: Sequence[Path]) -> Iterable[Path]:
        status.stop()
        hidden = as_json or not console.is_terminal
        return track(objects, "reading DVC's cache", console=console, transient=True, disable=hidden)

    with console.status("comparing digests") as status:
        verification = compare(workspace, fast=fast, track=show)
    if as_json:
        print_json(asdict(verification))
    else:
        for finding in verification.findings:
            console.print(Text(f"{finding.subject}: {finding.problem}", "bold red"), soft_wrap=True)
            for about in ("expected", "found", "remedy"):
                console.print(Text(f"  {about + ':':9} {getattr(finding, about)}"), soft_wrap=True)
        wrong = len(verification.findings)
        cached = "" if fast else f" and {verification.objects:,} objects of DVC's cache"
        console.print(
            f"{verification.versions} versions{cached} compared; " + (f"{wrong} findings" if wrong else "all agree")
        )
    if verification.findings:
        raise typer.Exit(FAILURE)


def _print_chain(links: "list[Link]") -> None:
    for link in links:
        console.print(Text(link.name, "bold"))
        for name, value in link.facts.items():
            _print_fact(name, value)
        for command in link.look:
            console.print(Text(f"  open: {command}", "cyan"), soft_wrap=True)


def _print_fact(name: str, value: Any, indent: int = 2) -> None:
    if isinstance(value, Mapping):
        console.print(Text(f"{'':{indent}}{name}"))
        for inner, digest in value.items():
            _print_fact(inner, digest, indent + 2)
        return
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    console.print(Text(f"{'':{indent}}{name:{max(1, 34 - indent)}} {shown}"), soft_wrap=True)


def _print_descendants(found: "list[Descendant]") -> None:
    if not found:
        console.print("no version came from it")
        return
    table = Table("version", "aliases", "by", "run", box=SIMPLE_HEAD)
    for version in found:
        table.add_row(
            f"{version.name} {version.version}", ", ".join(version.aliases), ", ".join(version.by), version.run
        )
    console.print(table)
