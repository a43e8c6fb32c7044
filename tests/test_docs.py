"""The documents: generated parts up to date, links, numbers, and commands that parse."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import okdph_jax
from okdph_jax.cli import COMMANDS, dispatch, views
from okdph_jax.cli.train import parse
from okdph_jax.methods import METHODS, WRAPPERS
from okdph_jax.report import paper

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}


def build():
  return script(ROOT / "docs" / "build.py")


def site(name):
  """A module of the documentation site, which needs its extra."""
  pytest.importorskip("latex2mathml", reason="pip install '.[docs]'")
  return script(ROOT / "docs" / "_site" / f"{name}.py")


def script(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
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
  """The words of every command of ours in the code blocks, or in indented lines."""
  fenced = re.findall(r"^```(.*?)\n(.*?)^```", text, re.S | re.M)
  blocks = [block for language, block in fenced if not language]
  blocks += re.findall(r"^(?:#?    .*\n)+", text, re.M)
  for block in blocks:
    for line in block.replace("\\\n", " ").splitlines():
      if re.search(r"python -m okdph_jax|\bokdph ", line) and "okdph_jax: " not in line:
        yield shlex.split(line.removeprefix("#"), comments=True)


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
  for page in (ROOT / "docs").glob("*.md"):
    assert page.name == "README.md" or f"({page.name})" in TEXTS["docs/README.md"]
  for script in (ROOT / "examples").glob("*.*"):
    assert f"(../examples/{script.name})" in TEXTS["docs/README.md"]


def test_the_menu_of_the_site_lists_every_page():
  menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
  pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]]
  pages += [f"examples/{script.stem}.md" for script in (ROOT / "examples").glob("*.*")]
  for page in pages:
    assert re.search(rf"[ :]{re.escape(page)}$", menu, re.M), f"add {page} to mkdocs.yml"


@pytest.mark.parametrize("page", TEXTS)
def test_prose_wraps(page):
  text = re.sub(r"^(\||!\[).*$", "", without_code(TEXTS[page]), flags=re.M)
  text = re.sub(r"`[^`\n]*`", "", text)  # commands are not broken
  assert [line for line in text.splitlines() if len(line) > 104 and "://" not in line] == []


def examples():
  """(script, what it says at its top)."""
  for script in sorted((ROOT / "examples").glob("*.*")):
    text = script.read_text(encoding="utf-8")
    if script.suffix == ".py":
      text = (ast.get_docstring(ast.parse(text)) or "") + "\n"
    yield f"examples/{script.name}", text


def ours():
  """Our commands in the documents: (their words, name for the test)."""
  for page, text in [*TEXTS.items(), *examples()]:
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
  harmless = {"sweep": ["--print"], "watch": ["--once"]}  # of what would run for long
  code, errors = dispatch(words + harmless.get(command, [])), capsys.readouterr().err
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


@pytest.mark.parametrize("name", [*METHODS, *WRAPPERS])
def test_every_method_has_a_page_with_the_formula_of_its_docstring(name):
  builder = (METHODS | WRAPPERS)[name]
  directive = f"::: {builder.__module__}.{name}\n"
  (page,) = [page for page in TEXTS if directive in TEXTS[page]]
  assert (
    page.startswith("docs/methods/")
    and f"({Path(page).name})" in TEXTS["docs/methods/README.md"]
  )
  lines = [line for line in builder.__doc__.splitlines() if line.startswith("      ")]
  for formula in site("formulas").lines("\n".join(line[2:] for line in lines)):
    assert "<math" in site("formulas").mathml(site("formulas").latex(formula), display=True)


def test_formulas_of_docstrings_become_latex():
  latex = site("formulas").latex
  assert latex("theta' <- d theta' + (1 - d) theta") == (
    r"\theta' \leftarrow d \theta' + (1 - d ) \theta"
  )
  assert latex("sum_{j != m} KL_1(sg[z_j] -> z_en) / 1e-12;  x^2") == (
    r"\sum_{j \neq m} \mathrm{KL}_{1}(\mathrm{sg} [z_{j}] \to z_{\mathrm{en}}) / 10^{-12}"
    r"\qquad x ^{2}"
  )


def test_the_reference_has_every_public_name():
  for name in set(okdph_jax.__all__) - {"__version__"}:
    thing = getattr(okdph_jax, name)
    path = thing.__name__ if inspect.ismodule(thing) else f"{thing.__module__}.{name}"
    assert any(f"::: {path}" in text for text in TEXTS.values()), path


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
  for folder in ("okdph_jax", "configs", "benchmarks", "tests", "docs", "examples"):
    files += (ROOT / folder).rglob("*.py")
  wrong = re.compile(r"\.\./shared|\bspec/\w|\bD\d{1,2}\b(?!-)|\bstyle\.md")
  found = [
    f"{file.relative_to(ROOT)}: {match[0]}"
    for file in files
    if file != Path(__file__)
    for match in wrong.finditer(file.read_text(encoding="utf-8"))
  ]
  assert found == []
