"""The page of a review, driven with a browser: served, and as one file that another reader sends back."""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from pipeline.data.corrections import CORRECTIONS, read_corrections
from pipeline.review.page import ReviewList, compose_page, export_page, open_review
from pipeline.review.page_server import PageServer
from pipeline.review.verdicts import collect_outcomes, read_verdicts
from tests.e2e.pages import PATIENCE, open_browser
from tests.review.listed import make_checkout, read_commands

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("review-page")]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with open_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open an address in a tab. Errors of its script, and requests to other hosts, fail the test."""
    failures: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})

    def open_(address: str) -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
        page.goto(address)
        expect(page.locator("#pictures img").first).to_be_visible()
        return page

    yield open_
    context.close()
    assert failures == []


@contextmanager
def serving(path: Path, who: str = "reader-1") -> Iterator[PageServer]:
    with PageServer(compose_page(path, open_review(path, None), 1000), who) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def wait_until_saved(page: Page) -> None:
    expect(page.locator("#saved")).to_contain_text("Saved")


def read_targets(review: ReviewList) -> dict[int, str]:
    """Return the verdict about each image, by its row, with the label of `relabel`."""
    outcomes = collect_outcomes(review.items, read_verdicts(review.verdicts, review.items))
    return {
        outcome.item.official_row or 0: f"{verdict.verdict} {verdict.label}"
        if verdict.label is not None
        else verdict.verdict
        for outcome in outcomes
        for verdict in outcome.verdicts[-1:]
    }


def run(path: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_every_key_saves_a_verdict_and_a_later_session_continues(tmp_path: Path, open_page: Open) -> None:
    review = make_checkout(tmp_path, pairs=0)
    suggested = [item.suggested for item in review.items]
    with serving(tmp_path) as server:
        page = open_page(server.address)
        press(page, "k", "s", "r", "u", str((review.items[4].given + 5) % 10), str(review.items[5].given))
        wait_until_saved(page)
        expected = {0: "keep", 1: f"relabel {suggested[1]}", 2: "remove", 3: "unsure"}
        expected |= {4: f"relabel {(review.items[4].given + 5) % 10}", 5: "keep"}  # the class that it has
        assert read_targets(review) == expected
        press(page, "z")
        expect(page.locator("#place")).to_have_text("6 of 12")
        press(page, "ArrowLeft", "ArrowLeft", "r", "z")
        wait_until_saved(page)
        del expected[5]
        assert read_targets(review) == expected
        expect(page.locator("#verdict")).to_have_text("Unsure")  # undo brought the former verdict back
        page.reload()
        expect(page.locator("#place")).to_have_text("6 of 12")
    with serving(tmp_path) as server:
        page = open_page(server.address)
        expect(page.locator("#place")).to_have_text("6 of 12")
        expect(page.locator("#counts")).to_contain_text("5 of 12 seen: 1 kept, 2 relabelled, 1 removed, 1 unsure")
        press(page, "z", "Enter")  # undo reaches into the former session
        wait_until_saved(page)
    assert read_targets(review) == expected | {4: f"relabel {suggested[4]}"}


def test_pairs_are_side_by_side_with_their_pictures(tmp_path: Path, open_page: Open) -> None:
    make_checkout(tmp_path)
    with serving(tmp_path) as server:
        page = open_page(server.address)
        page.get_by_role("button", name="Duplicates 2").click()
        shown = page.locator("#pictures img:visible")
        expect(shown).to_have_count(2)
        boxes = [image.bounding_box() for image in shown.all()]
        assert boxes[0] is not None
        assert boxes[1] is not None
        assert boxes[0]["y"] == boxes[1]["y"]
        sizes = page.locator("img:visible").evaluate_all("images => images.map(image => image.naturalWidth)")
        assert set(sizes) == {28}
        press(page, "r", "k", "r")  # the third is on the last image again
        wait_until_saved(page)
    assert read_targets(open_review(tmp_path, None)) == {0: "remove", 1: "remove"}


def test_many_classes_are_chosen_by_a_part_of_their_name(tmp_path: Path, open_page: Open) -> None:
    review = make_checkout(tmp_path, pairs=0, classes=40)
    with serving(tmp_path) as server:
        page = open_page(server.address)
        press(page, "7", "c")  # digits choose nothing here
        page.keyboard.type("hat 2")
        expect(page.locator("#matches li")).to_have_count(9)
        press(page, "ArrowDown", "Enter", "c")
        page.keyboard.type("모자 33")
        press(page, "Enter", "c", "Escape")
        korean = "new KeyboardEvent('keydown', { key: 'ㅏ', code: 'KeyK', bubbles: true })"
        page.evaluate(f"document.body.dispatchEvent({korean})")
        wait_until_saved(page)
    assert read_targets(review) == {0: "relabel 21", 1: "relabel 33", 2: "keep"}


def test_verdicts_wait_while_the_server_is_gone(tmp_path: Path, browser: Browser) -> None:
    review = make_checkout(tmp_path, pairs=0)
    with serving(tmp_path) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.address)
        expect(page.locator("#place")).to_have_text("1 of 12")
        context.set_offline(True)
        press(page, "k", "r")
        expect(page.locator("#problem")).to_contain_text("not saved")
        assert read_targets(review) == {}
        context.set_offline(False)
        expect(page.locator("#problem")).to_be_hidden(timeout=20_000)
        wait_until_saved(page)
        context.close()
    assert read_targets(review) == {0: "keep", 1: "remove"}


def test_a_long_list_needs_no_more_elements_and_few_requests(tmp_path: Path, open_page: Open) -> None:
    counts = []
    for listed in (20, 1000):
        make_checkout(tmp_path / str(listed), images=1100, listed=listed, pairs=0)
        with serving(tmp_path / str(listed)) as server:
            page = open_page(server.address)
            requests: list[str] = []
            page.on("request", lambda request, seen=requests: seen.append(request.url))
            press(page, *"ksruksruks")
            wait_until_saved(page)
            page.wait_for_load_state("networkidle")
            elements = page.evaluate("document.querySelectorAll('*').length")
            counts.append((elements, len([url for url in requests if "/verdicts" in url])))
            # Of the ten images that come near: their verdict, their picture, and six examples of two classes. Twice,
            # because a picture may be asked for again before it is in the cache.
            assert len(requests) < 2 * 10 * (1 + 1 + 2 * 6)
    assert counts[0] == counts[1]
    assert counts[0][1] == 10


def test_another_reader_reviews_in_one_file_and_differences_are_decided(tmp_path: Path, open_page: Open) -> None:
    review = make_checkout(tmp_path, pairs=0)
    one, two, three = review.items[:3]
    export, merge = read_commands("Ask a second reader")
    subprocess.run(export, cwd=tmp_path, check=True, capture_output=True)
    page = open_page((tmp_path / export[-1]).as_uri())
    press(page, "s", "r", "k")
    page.reload()
    expect(page.locator("#counts")).to_contain_text("3 of 12 seen")  # kept in the browser
    shorter = compose_page(tmp_path, review, 1)
    export_page(shorter, tmp_path / "shorter.html")
    other = open_page((tmp_path / "shorter.html").as_uri())
    press(other, "u", "z")
    page.reload()
    expect(page.locator("#counts")).to_contain_text("3 of 12 seen")  # a file with fewer images loses no verdict
    page.get_by_label("Your name").fill("reader-2")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the verdicts").click()
    assert download.value.suggested_filename == merge[-1]
    file = tmp_path / merge[-1]
    download.value.save_as(file)
    assert {record["id"] for record in json.loads(file.read_text())["verdicts"]} == {one.id, two.id, three.id}

    with serving(tmp_path) as server:
        page = open_page(server.address)
        press(page, "s", "k", "r")
        wait_until_saved(page)
    merged = run(tmp_path, merge)
    assert merged.returncode == 3, merged.stderr
    assert "2 images are not corrected: readers differ" in merged.stdout
    names = review.dataset.classes
    written = read_corrections(tmp_path / CORRECTIONS, review.dataset)
    assert written.labels == {one.id[:40]: names[one.suggested]}  # what both said

    with serving(tmp_path) as server:
        page = open_page(server.address)
        expect(page.locator("#place")).to_have_text("1 of 2")
        expect(page.locator("#others")).to_contain_text("reader-2: removed")
        press(page, "r", "s")
        wait_until_saved(page)
        expect(page.locator("#place")).to_have_text("2 of 2: every image of this list has a verdict")
    decided = run(tmp_path, [*merge[:-1], "--yes"])
    assert decided.returncode == 0, decided.stdout + decided.stderr
    written = read_corrections(tmp_path / CORRECTIONS, review.dataset)
    assert written.labels == {
        one.id[:40]: names[one.suggested],
        two.id[:40]: "",
        three.id[:40]: names[three.suggested],
    }
    assert written.given[two.id] == names[two.given]
    before = (tmp_path / CORRECTIONS).read_bytes(), review.verdicts.read_bytes()
    assert run(tmp_path, [*merge, "--yes"]).returncode == 0  # the same file again changes nothing
    assert ((tmp_path / CORRECTIONS).read_bytes(), review.verdicts.read_bytes()) == before
