"""Draw the README's Mermaid diagram as a PNG: `python -m docs.images.draw`. Needs npm, for Mermaid, and Chromium."""

import io
import re
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from tests.conftest import REPOSITORY
from tests.e2e.pages import open_browser

TARGET = Path(__file__).with_name("pipeline.png")
MERMAID = "mermaid@12.3.0"
PAGE = '<body style="margin:0;background:white"><pre class="mermaid" style="display:inline-block;margin:8px">{}</pre>'
SETTINGS = "{theme: 'neutral', flowchart: {useMaxWidth: false}, fontFamily: 'DejaVu Sans'}"


def main() -> None:
    diagram = re.search(r"(?s)```mermaid\n(.*?)```", (REPOSITORY / "README.md").read_text("utf-8"))[1]
    with tempfile.TemporaryDirectory() as scratch, open_browser() as browser:
        subprocess.run(["npm", "pack", "--silent", MERMAID], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(scratch).glob("*.tgz")
        subprocess.run(["tar", "xzf", archive.name, "package/dist/mermaid.min.js"], cwd=scratch, check=True)
        page = browser.new_page(viewport={"width": 2000, "height": 800}, device_scale_factor=1.5)
        page.set_content(PAGE.format(diagram.replace("<", "&lt;")))
        page.add_script_tag(path=Path(scratch) / "package/dist/mermaid.min.js")
        page.evaluate(f"mermaid.initialize({SETTINGS}); mermaid.run()")
        page.locator("svg").wait_for()
        shown = Image.open(io.BytesIO(page.locator("pre").screenshot()))
    shown.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(TARGET, optimize=True)
    print(f"{TARGET.relative_to(REPOSITORY)}: {shown.width} x {shown.height}, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
