"""The documents: generated parts up to date, links, numbers, and commands that parse."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from okdph_jax.cli import COMMANDS, dispatch, views
from okdph_jax.cli.train import parse
from okdph_jax.report import paper

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}


def build():
  spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def without_code(text):
  return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(text):
  """What GitHub makes of the headings."""
  for heading in re.findall(r"^#+ (.+)$", without_code(text), re.M):
    yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands(text):
  """The words of every command of ours in the code blocks."""
  for block in re.findall(r"^```\n(.*?)^```", text, re.S | re.M):
    for line in block.replace("\\\n", " ").splitlines():
      if re.search(r"python -m okdph_jax|\bokdph ", line):
        yield shlex.split(line, comments=True)


def test_the_documents_hold_the_tables_of_the_committed_results():
  docs = build()
  for file, parts in docs.generated().items():
    text = (ROOT / file).read_text()
    assert docs.with_parts(text, parts) == text, f"run `python docs/build.py`: {file} is old"


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
  text = TEXTS[page]
  for target in re.findall(r"\]\((?!https?:)([^)]*)\)", without_code(text)):
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists(), target
    if anchor:
      assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_the_index_lists_every_page():
  for page in PAGES[1:]:
    assert page.name == "README.md" or f"({page.name})" in TEXTS["docs/README.md"]


@pytest.mark.parametrize("page", TEXTS)
def test_prose_wraps(page):
  text = re.sub(r"^(\||!\[).*$", "", without_code(TEXTS[page]), flags=re.M)
  text = re.sub(r"`[^`\n]*`", "", text)  # commands are not broken
  assert [line for line in text.splitlines() if len(line) > 104 and "://" not in line] == []


def ours():
  """Our commands in the documents: (their words, name for the test)."""
  for page, text in TEXTS.items():
    for words in commands(text):
      if "okdph_jax.main" in words:
        words = ["train", *words[words.index("okdph_jax.main") + 1 :]]
      elif "okdph" in words:
        words = words[words.index("okdph") + 1 :]
      else:
        continue
      if "..." not in words:
        yield pytest.param(words, id=f"{page}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(ours()))
def test_commands_exist_and_parse(words, tmp_path, monkeypatch, capsys):
  command, *options = words
  assert command in COMMANDS
  if command == "train":
    parse(options)
    return
  shutil.copytree(ROOT / "docs" / "results", tmp_path / "runs")
  line = {"step": 1, "epoch": 1, "seconds": 1.0, "losses": {}}
  line["accuracy"] = {"test": {"student_0": 0.5}}
  (tmp_path / "runs" / "limited").mkdir()
  (tmp_path / "runs" / "limited" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(views, "draw", lambda config, path: None)
  code, errors = dispatch(words), capsys.readouterr().err
  if command in ("views", "report"):
    assert code == 0, errors
  else:  # on a trained run: there is none here, but the options are read first
    assert "--help has all" not in errors


@pytest.mark.parametrize("page", TEXTS)
def test_python_examples_use_what_exists(page):
  for block in re.findall(r"^```py(?:thon)?\n(.*?)^```", TEXTS[page], re.S | re.M):
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.ImportFrom) and node.module.startswith("okdph_jax"):
        module = importlib.import_module(node.module)
        for name in node.names:
          assert hasattr(module, name.name) or importlib.import_module(
            f"{node.module}.{name.name}"
          )
      elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "okdph_jax":
        assert hasattr(importlib.import_module("okdph_jax"), node.attr), node.attr


def expected():
  """(a command of docs/configs.md, the paper's number beside it)."""
  rows = re.findall(
    r"^\| `(--config=[^`]+)` \|.*\| *([^|]*?) *\|$", TEXTS["docs/configs.md"], re.M
  )
  assert len(rows) > 20
  return rows


@pytest.mark.parametrize(("command", "number"), expected())
def test_the_paper_s_number_stands_beside_the_run_that_it_describes(command, number):
  config, _ = parse([command])
  assert str(paper.cell(config.to_dict()) or "") == number


def test_nothing_refers_to_files_that_a_reader_does_not_have():
  files = [*PAGES, *ROOT.glob("*.toml"), ROOT / "Makefile"]
  for folder in ("okdph_jax", "configs", "benchmarks", "tests", "docs"):
    files += (ROOT / folder).rglob("*.py")
  wrong = re.compile(r"\.\./shared|\bspec/\w|\bD\d{1,2}\b(?!-)|\bstyle\.md")
  found = [
    f"{file.relative_to(ROOT)}: {match[0]}"
    for file in files
    if file != Path(__file__)
    for match in wrong.finditer(file.read_text(encoding="utf-8"))
  ]
  assert found == []
