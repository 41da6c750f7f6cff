"""Hooks of mkdocs: the navigation, and the pages that are no files in docs/.

A page of docs/ links to other files of this repository by relative paths, which work on a code host. The site has a
page for each of these files, which shows its content: the address of the repository is not known here.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify
from reference import create_pages

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")
AS_THEY_ARE = (".md", ".png", ".svg")  # files that are shown as they are; others are code
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)

_reference: dict[str, str] = {}  # the generated pages, by their path in the site


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the pages of the reference, name the site as the project, and complete the navigation."""
    config.site_name = (ROOT / "README.md").read_text("utf-8").partition("\n")[0].removeprefix("# ")
    _reference.update(create_pages())
    config.nav = list(_expand(config.nav))
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")  # anchors as on code hosts
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference, and a page for each file outside docs/ that a page links to."""
    for uri, text in _reference.items():
        files.append(File.generated(config, uri, content=text))
    for path in sorted(_find_linked(config)):
        files.append(_create_file(config, path))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Replace links to files outside docs/ by links to their pages."""
    if page.file.src_uri in _reference:
        return markdown
    here = page.file.src_uri

    def replace(match: re.Match[str]) -> str:
        target = _uri(_resolve(_path(here), match[0]))
        return relpath(target, str(PurePosixPath(here).parent))

    return "".join(part if FENCE.match(part) else LINK.sub(replace, part) for part in FENCE.split(markdown))


def _expand(nav: Any) -> Iterator[Any]:
    """Replace patterns by the pages that they match, and leave out pages that do not exist."""
    if isinstance(nav, dict):  # sections, without those that are empty
        yield from ({title: found} for title, entries in nav.items() if (found := list(_expand(entries))))
    elif isinstance(nav, list | None):
        for entry in nav or ():
            yield from _expand(entry)
    elif "*" in nav:
        found = [relpath(path, ROOT / "docs") for path in sorted((ROOT / "docs").glob(nav))]
        yield from _expand([*found, *sorted(uri for uri in _reference if fnmatch(uri, nav))])
    elif nav in _reference or (ROOT / "docs" / nav).exists():
        yield _uri(normpath(f"docs/{nav}"))


def _find_linked(config: MkDocsConfig) -> set[str]:
    """Return the paths of the files outside docs/ that the pages and those files link to, relative to the root."""
    pages = (path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    waiting = [*pages, *map(_path, re.findall(r"files/[^']+", str(config.nav)))]
    found: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path not in found and (ROOT / path).is_file():
            found.add(path)
            if path.endswith(".md"):
                text = FENCE.sub("", (ROOT / path).read_text("utf-8"))
                waiting += [_resolve(path, link) for link in LINK.findall(text)]
    return {path for path in found if not path.startswith("docs/")}


def _create_file(config: MkDocsConfig, path: str) -> File:
    inclusion = InclusionLevel.NOT_IN_NAV
    if path.endswith(AS_THEY_ARE):
        return File.generated(config, _uri(path), abs_src_path=str(ROOT / path), inclusion=inclusion)
    language = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}.get(Path(path).suffix, "text")
    text = (ROOT / path).read_text("utf-8")
    title = f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n"
    return File.generated(config, _uri(path), content=f"{title}````{language}\n{text}\n````\n", inclusion=inclusion)


def _resolve(path: str, link: str) -> str:
    return normpath(f"{PurePosixPath(path).parent}/{link}")


def _uri(path: str) -> str:
    """Return where the site has a file of this repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" if path.endswith(AS_THEY_ARE) else f"files/{path}.md"


def _path(uri: str) -> str:
    return uri.removeprefix("files/") if uri.startswith("files/") else f"docs/{uri}"
