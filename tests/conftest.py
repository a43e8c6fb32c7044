"""The suite runs on two host devices, so that sharding is tested wherever it runs."""

import shutil

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture(autouse=True, scope="module")
def free_compiled_programs():
  """Without it a process of the suite grows to 5 GB."""
  yield
  jax.clear_caches()


@pytest.fixture(scope="module")
def browser():
  """A headless Chromium, driven by Playwright: `page = browser.new_page()`.

  The system's (`apt-get install chromium`) or Playwright's own (`playwright install chromium`);
  where there is neither, the test is skipped and says so.
  """
  playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
  with playwright.sync_playwright() as driver:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    try:
      # As root Chromium starts without its sandbox alone, and containers have a small /dev/shm.
      options = ["--no-sandbox", "--disable-dev-shm-usage"]
      started = driver.chromium.launch(executable_path=path, args=options)
    except playwright.Error as error:
      pytest.skip(f"no browser: apt-get install chromium ({str(error).splitlines()[0]})")
    with started:
      yield started
