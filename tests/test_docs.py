"""The documents: generated parts up to date, links, and commands that parse."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def build():
  spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_documents_hold_the_tables_of_the_committed_results():
  docs = build()
  for file, parts in docs.generated().items():
    text = (ROOT / file).read_text()
    assert docs.with_parts(text, parts) == text, f"run `python docs/build.py`: {file} is old"
