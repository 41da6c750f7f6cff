"""The README's pictures of MLflow's pages, taken anew: `python -m tests.e2e.screenshots`.

A copy of the project is trained twice on real Fashion-MNIST (about two minutes), so that there is a champion and a
challenger, and its pages are opened in Chromium. Nothing in this repository changes but `docs/images/`.
"""

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page

from tests.conftest import REPOSITORY, Project, create_project
from tests.e2e.pages import open_browser, open_pages
from tests.e2e.servers import serve

IMAGES = REPOSITORY / "docs" / "images"
COLOURS = 128  # a palette: a third of the bytes, and no difference that the eye finds


def train(project: Project) -> None:
    """Two models of Fashion-MNIST: the first serves, the second waits or not, as it deserves."""
    project.repro()
    project.commit("train the first model")
    project.set_params(**{"train.widths": [256]})
    project.repro()


def take(part: Page | Locator, name: str) -> None:
    """Save what the tab shows, or a part of it, as a small PNG."""
    shown = Image.open(io.BytesIO(part.screenshot()))
    file = IMAGES / f"{name}.png"
    shown.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file.relative_to(REPOSITORY)}: {file.stat().st_size:,} bytes")


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        project = create_project(Path(scratch) / "project", Path(scratch) / "home")
        train(project)
        with (
            serve(project, "python", "-m", "pipeline.cli", "ui", log=Path(scratch) / "server.log") as address,
            open_browser() as browser,
        ):
            pages = open_pages(browser, address, project, height=760)
            pages.open_charts()
            pages.page.wait_for_timeout(3000)  # for the last of the charts in sight
            take(pages.page, "mlflow-run")
            pages.open_model("fashion-mnist")
            take(pages.page, "mlflow-registry")
            pages.page.set_viewport_size({"width": 1600, "height": 1600})  # most of the card in one picture
            pages.open_card("Model card: fashion-mnist version")
            take(pages.page.locator("iframe#html"), "model-card")


if __name__ == "__main__":
    main()
