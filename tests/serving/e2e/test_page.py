"""The try-it page in a browser, on the champion of a trained project."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from pipeline.data import table
from pipeline.serving.keys import KEY_FILE
from pipeline.tracking.stage_outputs import Outputs
from tests.conftest import Project
from tests.e2e.pages import open_browser
from tests.e2e.servers import serve

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("serving-page")]

PATIENCE = 30_000  # milliseconds
WIDTHS = {"wide": (1200, 1000), "narrow": (390, 1500)}


@dataclass(frozen=True)
class TryIt:
    """A served project, and tabs on its page."""

    project: Project
    address: str
    browser: Browser

    @property
    def key(self) -> str:
        """The API key of the server."""
        return (self.project.path / KEY_FILE).read_text().strip()

    def open(self, size: str = "wide", fragment: str = "") -> "Tab":
        """Open the page in a new tab and wait until it describes the model."""
        width, height = WIDTHS[size]
        page = self.browser.new_page(viewport={"width": width, "height": height})
        tab = Tab(page, [], [])
        page.on("request", lambda request: tab.requested.append(request.url))
        page.on("console", lambda message: message.type == "error" and tab.errors.append(message.text))
        page.on("pageerror", lambda error: tab.errors.append(str(error)))
        page.goto(f"{self.address}/{fragment}")
        expect(page.locator("#model")).to_contain_text("version 1", timeout=PATIENCE)
        return tab

    def example(self, number: int = 0) -> tuple[bytes, int]:
        """An image of the test split as PNG, and its label."""
        images, labels = table.read_images(Outputs(self.project.path).split("test"))
        return as_png(images[number]), int(labels[number])


@dataclass(frozen=True)
class Tab:
    page: Page
    requested: list[str]  # addresses
    errors: list[str]  # of its console

    def choose(self, content: bytes, name: str = "picture.png") -> None:
        kind = {"name": name, "mimeType": "image/png", "buffer": content}
        self.page.locator("#file").set_input_files([kind])  # type: ignore[list-item]

    def draw(self, *points: tuple[float, float]) -> None:
        """Draw a line; the points are shares of the canvas's width and height."""
        box = self.page.locator("#canvas").bounding_box()
        assert box
        places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=5)
        self.page.mouse.up()

    def top(self) -> str:
        """The most probable class in English, once the answer is there."""
        expect(self.page.locator("#answer")).to_be_visible(timeout=PATIENCE)
        expect(self.page.locator("#answer")).to_have_attribute("aria-busy", "false", timeout=PATIENCE)
        text = self.page.locator("#top-class").text_content() or ""
        korean = self.page.locator("#top-class [lang=ko]").text_content() or ""
        return text.removesuffix(korean).strip()


def as_png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def try_it(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TryIt]:
    directory = tmp_path_factory.mktemp("page")
    project = template.copy_to(directory / "project")
    command = ("python", "-m", "pipeline.cli", "serve")
    with (
        serve(project, *command, log=directory / "server.log", health="/health/ready") as address,
        open_browser() as browser,
    ):
        yield TryIt(project, address, browser)


@pytest.mark.parametrize("size", WIDTHS)
def test_a_chosen_picture_is_answered_in_both_languages(try_it: TryIt, size: str, tmp_path: Path) -> None:
    tab = try_it.open(size)
    tab.choose(try_it.example()[0])
    name = tab.top()
    contract = json.loads((try_it.project.path / "models/contract.json").read_text())
    rows = tab.page.locator("#probabilities tr")
    shown = {row.locator("th").text_content() for row in rows.all()}
    assert shown == {f"{one} {other}" for one, other in zip(contract["classes"], contract["classes_ko"], strict=True)}
    assert (rows.first.locator("th").text_content() or "").startswith(name)
    values = [float((row.locator("td").last.text_content() or "").removesuffix(" %")) for row in rows.all()]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(100, abs=1)
    expect(tab.page.locator("#facts")).to_contain_text(f"Version 1 of tiny, model {contract['litert_sha256'][:12]}")
    assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing is cut off
    tab.page.screenshot(path=tmp_path / "answer.png", full_page=True)
    assert tab.errors == []


def test_the_page_needs_no_other_host_and_runs_no_foreign_script(try_it: TryIt) -> None:
    tab = try_it.open()
    tab.choose(try_it.example()[0])
    tab.top()
    own = (try_it.address, "blob:", "data:")
    assert [url for url in tab.requested if not url.startswith(own)] == []
    injected = "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    tab.page.evaluate(injected)
    assert tab.page.evaluate("window.ran") is None
    assert "Content Security Policy" in tab.errors[0]


def test_a_drawing_is_what_the_model_gets(try_it: TryIt, tmp_path: Path) -> None:
    tab = try_it.open()
    tab.page.locator("#tab-drawing").click()
    size = tab.page.locator("#canvas").evaluate("canvas => [canvas.height, canvas.width]")
    contract = json.loads((try_it.project.path / "models/contract.json").read_text())
    assert size == [contract["height"], contract["width"]]
    ground = tab.page.locator("#canvas").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, 1, 1).data]"
    )
    assert ground == [*3 * [contract["ground"]], 255]
    tab.draw((0.3, 0.2), (0.7, 0.2), (0.7, 0.8))
    tab.top()
    tab.page.locator("#explain").click()
    expect(tab.page.locator("#explanation")).to_be_visible(timeout=PATIENCE)
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    drawn = np.array(tab.page.locator("#canvas").evaluate(read)).reshape(*size, 4)
    explained = np.array(tab.page.locator("#saliency").evaluate(read)).reshape(*size, 4)
    assert drawn[:, :, 0].max() > 200  # in a colour that differs from the ground
    marked = np.ptp(explained[:, :, :3], axis=2)  # of grey pixels 0
    assert marked.max() > 50
    tab.page.screenshot(path=tmp_path / "drawing.png", full_page=True)
    tab.draw((0.2, 0.9), (0.8, 0.9))  # the next answer replaces the explanation of the former one
    expect(tab.page.locator("#explanation")).to_be_hidden()
    tab.page.locator("#clear").click()
    cleared = np.array(tab.page.locator("#canvas").evaluate(read)).reshape(*size, 4)
    assert (cleared[:, :, :3] == contract["ground"]).all()
    assert tab.errors == []


def test_a_drawing_for_a_model_in_colour_has_its_ground_and_a_choice_of_colours(try_it: TryIt) -> None:
    page = try_it.browser.new_page()

    def in_colour(route: Route) -> None:
        described = route.fetch().json()
        route.fulfill(json={**described, "channels": 3, "ground": [250, 240, 230], "height": 32, "width": 48})

    page.route("**/v1/model", in_colour)
    page.goto(try_it.address)
    expect(page.locator("#model")).to_contain_text("32 × 48 pixels in colour")
    page.locator("#tab-drawing").click()
    expect(page.locator("#colour")).to_be_visible()
    expect(page.locator("#colour")).to_have_value("#000000")  # a bright ground
    read = "canvas => [canvas.height, canvas.width, ...canvas.getContext('2d').getImageData(0, 0, 1, 1).data]"
    assert page.locator("#canvas").evaluate(read) == [32, 48, 250, 240, 230, 255]


def test_a_dropped_and_a_pasted_picture_are_answered(try_it: TryIt) -> None:
    content = list(try_it.example()[0])
    transfer = """
    ([content, kind]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(content)], "dropped.png", {type: "image/png"}));
      const options = {bubbles: true, cancelable: true};
      document.querySelector("#drop").dispatchEvent(
        kind === "drop" ? new DragEvent("drop", {...options, dataTransfer: transfer})
                        : new ClipboardEvent("paste", {...options, clipboardData: transfer}));
    }"""
    found = set()
    for kind in ("drop", "paste"):
        tab = try_it.open()
        tab.page.evaluate(transfer, [content, kind])
        found.add(tab.top())
        expect(tab.page.locator("#drop-text")).to_have_text("dropped.png")
    assert len(found) == 1


def test_what_is_no_picture_is_explained_and_the_next_one_answered(try_it: TryIt, tmp_path: Path) -> None:
    tab = try_it.open()
    tab.choose(b"not a picture", "notes.png")
    problem = tab.page.locator("#problem")
    expect(problem).to_contain_text("notes.png is damaged", timeout=PATIENCE)
    expect(tab.page.locator("#answer")).to_be_hidden()
    tab.page.screenshot(path=tmp_path / "problem.png")
    tab.choose(try_it.example()[0])
    tab.top()
    expect(problem).to_be_hidden()


def test_the_key_in_the_address_is_used_and_leaves_it(try_it: TryIt) -> None:
    tab = try_it.open(fragment=f"#key={try_it.key}")
    assert "key" not in tab.page.url
    tab.choose(try_it.example()[0])
    tab.top()
    send_correction(tab, 1)
    expect(tab.page.locator("#feedback-result")).to_contain_text("Saved: ", timeout=PATIENCE)
    expect(tab.page.locator("#key-form")).to_be_hidden()
    assert try_it.key not in (try_it.project.path.parent / "server.log").read_text()


def test_a_correction_asks_for_the_key_and_is_then_sent(try_it: TryIt, tmp_path: Path) -> None:
    content, label = try_it.example(3)
    tab = try_it.open()
    tab.choose(content)
    tab.top()
    before = corrections(try_it.project)
    send_correction(tab, label)
    expect(tab.page.locator("#key-form")).to_be_visible(timeout=PATIENCE)
    tab.page.locator("#key").fill(try_it.key)
    tab.page.screenshot(path=tmp_path / "key.png", full_page=True)
    tab.page.get_by_role("button", name="Use this key").click()
    expect(tab.page.locator("#feedback-result")).to_contain_text("pipeline add-data", timeout=PATIENCE)
    tab.page.screenshot(path=tmp_path / "saved.png", full_page=True)
    assert corrections(try_it.project) > before
    assert not list((try_it.project.path / "data/incoming").glob("[!.]*"))  # only a person's command adds data


def send_correction(tab: Tab, label: int) -> None:
    tab.page.locator("#label").select_option(str(label))
    tab.page.locator("#who").fill("Ada")
    tab.page.get_by_role("button", name="Send the correction").click()


def corrections(project: Project) -> set[Path]:
    """The files of the corrections that were sent."""
    return {path for path in (project.path / ".pipeline/feedback").rglob("*") if path.is_file()}
