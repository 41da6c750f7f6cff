"""The HTML pages about a validation: an overview, and Great Expectations' own pages (Data Docs) about each suite.

All of them open without a network. Great Expectations' pages load scripts and styles from other servers, and its
overview is empty without them. Its pages are therefore kept without scripts, and this module writes the overview.
"""

import re
import shutil
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from great_expectations.data_context import AbstractDataContext

from pipeline.data.applied_corrections import summarise_applied
from pipeline.data.validation import Report, describe, describe_allowed, describe_observed, describe_verdict

STYLE = """<style>
body { font-family: system-ui, sans-serif; line-height: 1.5; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: 0.3rem 0.8rem; text-align: left; vertical-align: top; }
.FAILED, .text-danger { color: #b00020; font-weight: bold; }
.warning, .text-warning { color: #8a5a00; font-weight: bold; }
.badge { background: #eee; padding: 0 0.3rem; }
.fa-check-circle::before { content: "✓"; }
.fa-times::before { content: "✗"; }
.fa-exclamation-triangle::before { content: "!"; }
.modal, .card:has(.btn-group), a[data-toggle] { display: none; }
h4, h5, h6 { font-size: 1.1rem; margin-bottom: 0; }
.ge-section p { color: inherit !important; }
</style>
"""
# Of Great Expectations' pages: what needs a network, or has no function without scripts.
REMOVED = re.compile(r"<(script|style|footer)\b.*?</\1>|<(link|img)\b[^>]*>", re.DOTALL | re.IGNORECASE)


def write_pages(report: Report, context: AbstractDataContext, directory: Path) -> None:
    """Write `index.html` about a report, and Great Expectations' pages about the results in a context."""
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(directory.resolve())},
    }
    context.add_data_docs_site(site_name="pages", site_config=site)
    context.build_data_docs(site_names=["pages"])
    shutil.rmtree(directory / "static")  # fonts and pictures of the styles
    for page in directory.rglob("*.html"):
        content = REMOVED.sub("", page.read_text(encoding="utf-8"))
        page.write_text(content.replace("</head>", f"{STYLE}</head>"), encoding="utf-8")
    suites = sorted(page.relative_to(directory) for page in directory.glob("validations/**/*.html"))
    (directory / "index.html").write_text(render_overview(report, suites), encoding="utf-8")


def render_overview(report: Report, suites: Sequence[Path]) -> str:
    """Render the overview as HTML.

    Args:
        suites: Great Expectations' pages about the results of each suite, relative to the overview.
    """
    held = sum(finding.passed for finding in report.findings)
    stops = "A critical expectation fails, which stops the pipeline." if report.failures else "The pipeline continues."
    splits = [
        (name, f"{facts['images']:,}", ", ".join(f"{images:,} {source}" for source, images in facts["sources"].items()))
        for name, facts in report.splits.items()
    ]
    expectations = [
        (
            finding.name,
            finding.meaning,
            describe_verdict(finding),
            describe_observed(finding),
            describe_allowed(finding),
        )
        for finding in report.findings
    ]
    violated = [describe(finding) for finding in [*report.failures, *report.warnings]]
    skipped = [f"{name}: {reason}" for name, reason in report.skipped.items()]
    corrections = [summarise_applied(report.corrections)] if report.corrections else []
    links = "".join(f'<li><a href="{page.as_posix()}">{escape(page.parts[1])}</a></li>' for page in suites)
    title = f"Validation of {escape(report.dataset)}"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
{STYLE}</head><body>
<h1>{title}</h1>
<p>{held} of {len(report.findings)} expectations hold. {stops}</p>
{_list("Violated", violated)}
{_table(("split", "images", "sources"), splits)}
<h2>Expectations</h2>
{_table(("expectation", "what it checks", "result", "observed", "allowed"), expectations)}
{_list("Not checked", skipped)}
{_list("Corrections", corrections)}
<h2>Great Expectations' pages</h2>
<p>The same results, as Great Expectations describes them, for each table that was checked:</p>
<ul>{links}</ul>
<p>For programs: <a href="validation.json">validation.json</a></p>
</body></html>
"""


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    style = f' class="{text}"' if text in ("FAILED", "warning") else ""
    return f"<td{style}>{escape(text)}</td>"


def _list(title: str, items: Sequence[str]) -> str:
    """Render a heading and a list; nothing without items."""
    return f"<h2>{title}</h2><ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""
