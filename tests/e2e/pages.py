"""MLflow's pages in a real browser: what tests look at, and what the README shows."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, FrameLocator, Locator, Page, expect, sync_playwright

from tests.conftest import Project

PATIENCE = 120_000  # milliseconds for anything to appear; the page loads 10 MB of script
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True)
class Pages:
    """One tab, on the pages of one server. Every `open_` returns when what it is about can be seen."""

    page: Page
    address: str
    experiment: str
    run: str  # MLflow's id of the run

    def open_overview(self, run_name: str) -> Page:
        """A run's params, tags and datasets."""
        self._go(f"experiments/{self.experiment}/runs/{self.run}")
        expect(self.page.get_by_role("heading", name=run_name)).to_be_visible(timeout=PATIENCE)
        return self.page

    def open_charts(self) -> Locator:
        """A run's charts, one for each metric."""
        self._go(f"experiments/{self.experiment}/runs/{self.run}/model-metrics")
        cards = self.page.get_by_test_id("experiment-view-compare-runs-card")
        expect(cards.locator(".point").first).to_be_visible(timeout=PATIENCE)
        return cards

    def open_figure(self, path: str) -> Locator:
        """A picture among a run's artifacts."""
        self._go(f"experiments/{self.experiment}/runs/{self.run}/artifacts/{path}")
        figure = self.page.locator("img[src^='blob:'], img[src*='get-artifact']").first
        expect(figure).to_be_visible(timeout=PATIENCE)
        return figure

    def open_card(self, title: str) -> FrameLocator:
        """The model card among a run's artifacts."""
        self._go(f"experiments/{self.experiment}/runs/{self.run}/artifacts/card/card.html")
        card = self.page.frame_locator("iframe#html")
        expect(card.get_by_role("heading", name=title)).to_be_visible(timeout=PATIENCE)
        return card

    def open_experiment(self) -> Page:
        """The experiment, by the link in the list of experiments."""
        self._go("experiments")
        self.page.locator(f"a[href='#/experiments/{self.experiment}']").click(timeout=PATIENCE)
        expect(self.page.get_by_role("heading", name="Runs")).to_be_visible(timeout=PATIENCE)
        return self.page

    def open_models(self) -> Page:
        """The list of registered models."""
        self._go("models")
        expect(self.page.get_by_role("heading", name="Registered Models")).to_be_visible(timeout=PATIENCE)
        return self.page

    def open_model(self, name: str) -> Page:
        """A registered model with its versions and their aliases."""
        self._go(f"models/{name}")
        expect(self.page.get_by_test_id("model-version-table").get_by_text("@ champion")).to_be_visible(
            timeout=PATIENCE
        )
        return self.page

    def open_version(self, name: str, version: str) -> Page:
        """A version with its description."""
        self._go(f"models/{name}/versions/{version}")
        expect(self.page.get_by_text("weakest class")).to_be_visible(timeout=PATIENCE)
        return self.page

    def follow(self, link: Locator, width: int = 1920) -> Page:
        """The new tab that a link of a description opens."""
        with self.page.expect_popup(timeout=PATIENCE) as opened:
            link.click()
        opened.value.set_viewport_size({"width": width, "height": 1200})
        return opened.value

    def _go(self, path: str) -> None:
        # A new document each time: the pages keep what they showed when only the part after `#` changes.
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}/#/{path}", timeout=PATIENCE)


@contextmanager
def open_browser(*flags: str) -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    executable = shutil.which("chromium")
    if executable is None:
        raise AssertionError("the browser `chromium` is missing: apt-get install chromium")
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()  # root has none
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*FLAGS, *sandbox, *flags])
        yield browser
        browser.close()


def open_pages(browser: Browser, address: str, project: Project, *, height: int, width: int = 1280) -> Pages:
    """A new tab on the pages of a server that shows a project's store."""
    page = browser.new_page(viewport={"width": width, "height": height})
    experiment, run = find_run(project.path)
    return Pages(page, address, experiment, run)


def find_run(project: Path) -> tuple[str, str]:
    """The experiment and the id of the newest training."""
    query = """select experiment_id, runs.run_uuid from runs join tags using (run_uuid)
               where key = 'model.sha256' order by start_time desc"""
    with closing(sqlite3.connect(project / "mlflow.db")) as store:
        experiment, run = store.execute(query).fetchone()
    return str(experiment), str(run)
