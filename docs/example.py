"""Makes docs/example-report and its picture: `python docs/example.py ROOT [OPTION ...]`.

ROOT and the options are those of `okdph report`. The picture needs a browser: pip install
playwright, and `apt-get install chromium` or `playwright install chromium`.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from okdph_jax.cli import report

DOCS = Path(__file__).resolve().parent


def screenshot(page_file, out):
  """The first screen of the page, and below it the first charts."""
  with (
    sync_playwright() as driver,
    driver.chromium.launch(
      executable_path=shutil.which("chromium"), args=["--no-sandbox"]
    ) as browser,
  ):
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.goto(page_file.as_uri())
    for plot in page.locator(".plot").all()[:3]:
      plot.scroll_into_view_if_needed()
      page.wait_for_function("p => p.querySelector('.main-svg')", arg=plot.element_handle())
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    page.screenshot(path=out)


if __name__ == "__main__":
  out = DOCS / "example-report"
  if report.main([*sys.argv[1:], f"--out={out}"]):
    sys.exit(2)
  screenshot(out / "report.html", DOCS / "figures" / "report.png")
