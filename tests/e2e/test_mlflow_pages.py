"""What a person finds on MLflow's pages after `dvc repro`, seen with a browser."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from pipeline.files import file_digest
from pipeline.tracking.stage_outputs import Outputs
from tests.conftest import Project
from tests.e2e.pages import PATIENCE, Pages, open_browser, open_pages
from tests.e2e.servers import serve

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("mlflow-pages")]


@pytest.fixture(scope="module")
def pages(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    directory = tmp_path_factory.mktemp("pages")
    project = template.copy_to(directory / "project")
    with (
        serve(project, "python", "-m", "pipeline.cli", "ui", log=directory / "server.log") as address,
        open_browser() as browser,
    ):
        yield open_pages(browser, address, project, height=2400)


def test_the_experiment_opens_on_models_and_links_its_table(pages: Pages, template: Project, tmp_path: Path) -> None:
    page = pages.open_experiment()  # in a browser that has made no choices
    expect(page.get_by_role("link", name="Model registry")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("Welcome to MLflow Assistant")).to_have_count(0)
    page = pages.follow(page.get_by_role("link", name="the table with accuracy, decision, data and commit"))
    commit = template.run("git", "rev-parse", "HEAD~1").stdout[:6]
    for column, text in {
        "attributes.`Run Name`": "mlp epochs=3",
        "metrics.`best_validation_accuracy`": "0.",
        "metrics.`test_accuracy`": "0.",
        "tags.`decision`": "champion",
        "attributes.`Version`": commit,
        "attributes.`Dataset`": "tiny-train",
    }.items():
        cell = page.locator(f'[col-id="{column}"]').filter(has_text=text).first
        expect(cell).to_be_visible(timeout=PATIENCE)
    page.screenshot(path=tmp_path / "table.png")
    page.close()


def test_the_charts_follow_the_epochs(pages: Pages, template: Project, tmp_path: Path) -> None:
    cards = pages.open_charts()
    epochs = len(Outputs(template.path).history())
    for metric in ("loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate"):
        chart = cards.filter(has=pages.page.get_by_text(metric, exact=True))
        expect(chart.locator(".scatterlayer .point")).to_have_count(epochs, timeout=PATIENCE)
    pages.page.screenshot(path=tmp_path / "charts.png")


def test_the_confusion_matrix_is_shown(pages: Pages, template: Project, tmp_path: Path) -> None:
    shown = pages.open_figure("evaluation/figures/confusion.png")
    drawn = Image.open(Outputs(template.path).evaluation / "figures/confusion.png")
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == list(drawn.size)
    pages.page.screenshot(path=tmp_path / "confusion.png")


def test_the_card_is_shown_with_its_figures(pages: Pages, tmp_path: Path) -> None:
    card = pages.open_card("Model card: tiny version 1")
    expect(card.get_by_role("cell", name="바지")).to_be_visible()
    widths = card.get_by_role("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == 5
    assert min(widths) > 400
    pages.page.screenshot(path=tmp_path / "card.png")


def test_the_run_names_its_datasets(pages: Pages, template: Project, tmp_path: Path) -> None:
    with closing(sqlite3.connect(template.path / "mlflow.db")) as store:
        (name,) = store.execute("select name from runs where run_uuid = ?", (pages.run,)).fetchone()
    page = pages.open_overview(name)
    digest = file_digest(Outputs(template.path).split("train"), "md5")
    expect(page.get_by_text(f"tiny-train ({digest})")).to_be_visible(timeout=PATIENCE)
    page.screenshot(path=tmp_path / "run.png")


def test_the_registered_model_shows_its_aliases(pages: Pages, tmp_path: Path) -> None:
    page = pages.open_model("tiny")
    row = page.get_by_test_id("model-version-table").get_by_role("row").filter(has_text="Version 1")
    expect(row.get_by_text("@ champion")).to_be_visible(timeout=PATIENCE)
    page.screenshot(path=tmp_path / "model.png")


def test_a_model_of_generated_images_is_marked_in_the_list(pages: Pages, tmp_path: Path) -> None:
    page = pages.open_models()
    expect(page.get_by_role("row").filter(has_text="tiny").get_by_text("generated images")).to_be_visible()
    page.screenshot(path=tmp_path / "models.png")


def test_a_version_shows_its_confusion_matrix_and_links_its_run(pages: Pages, template: Project) -> None:
    description = pages.open_version("tiny", "1").get_by_test_id("note-editor-preview-content")
    picture = description.locator("img")  # MLflow drops its text
    drawn = Image.open(Outputs(template.path).evaluation / "figures/confusion.png")
    expect(picture).to_have_js_property("naturalWidth", drawn.width, timeout=PATIENCE)
    expect(description.get_by_text("written by the pipeline")).to_have_count(0)  # the signature is not shown
    run = pages.follow(description.get_by_role("link", name="Training run"))
    expect(run.get_by_role("heading", name="mlp epochs=3")).to_be_visible(timeout=PATIENCE)
    run.close()


def test_a_version_begins_with_what_was_decided(pages: Pages, tmp_path: Path) -> None:
    page = pages.open_version("tiny", "1")
    description = page.get_by_test_id("note-editor-preview-content")
    expect(description.get_by_text("it is the first of its name")).to_be_visible(timeout=PATIENCE)
    page.screenshot(path=tmp_path / "version.png")
