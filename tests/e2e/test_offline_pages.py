"""The HTML pages that the pipeline and DVC write, opened in a browser without a network."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import Project
from tests.e2e.pages import open_browser

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("mlflow-pages")]

CHARTS = 5  # in `dvc.yaml`, beside the pictures
FIGURES = 4


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser("--host-resolver-rules=MAP * ~NOTFOUND") as opened:
        yield opened


def open_file(browser: Browser, path: Path) -> Page:
    """Open a file. Fails if a script of it fails, or if it requests anything that is not a file."""
    page, requests, errors = browser.new_page(), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri(), wait_until="load")
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert errors == []
    return page


def test_dvc_plots_open_without_a_network(browser: Browser, template: Project, tmp_path: Path) -> None:
    template.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    page = open_file(browser, tmp_path / "plots/index.html")
    expect(page.locator(".vega-embed :is(svg.marks, canvas.marks)")).to_have_count(CHARTS)
    widths = page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == FIGURES
    assert min(widths) > 400
    page.screenshot(path=tmp_path / "plots.png", full_page=True)


def test_data_docs_open_without_a_network(browser: Browser, template: Project, tmp_path: Path) -> None:
    pages = template.path / "reports/data_docs"
    overview = open_file(browser, pages / "index.html")
    expect(overview.get_by_role("heading", name="Validation of tiny")).to_be_visible()
    row = overview.get_by_role("row").filter(has_text="duplicates_across_splits")
    expect(row.get_by_role("cell", name="test images that are training images too")).to_be_visible()
    overview.screenshot(path=tmp_path / "overview.png", full_page=True)
    overview.get_by_role("link", name="images", exact=True).click()
    expect(overview.get_by_text("Unsuccessful Expectations")).to_be_visible()
    for page in pages.rglob("*.html"):
        open_file(browser, page).close()
