"""What MkDocs does not do by itself: pages made of other files, and formulas as MathML.

- examples/NAME.py becomes the page examples/NAME.md: its docstring, then its code.
- README.md, CONTRIBUTING.md and CHANGELOG.md of the repository become pages.
- Links from docs/ to these files, "../examples/own_loop.py", lead to their pages.
- $formulas$ become MathML.
"""

import ast
import html
import re
from pathlib import Path

from formulas import mathml
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
COPIED = {
  "README.md": "overview.md",
  "CONTRIBUTING.md": "contributing.md",
  "CHANGELOG.md": "changelog.md",
}


def on_files(files, config):
  """Adds the pages that are made of files outside docs/."""
  made = {page: outside(name) for name, page in COPIED.items()}
  made |= {f"examples/{p.stem}.md": example(p) for p in (ROOT / "examples").glob("*.*")}
  for path, content in made.items():
    files.append(File.generated(config, path, content=content))
  return files


def outside(name):
  """A file of the repository's root as a page in docs/."""
  text = (ROOT / name).read_text(encoding="utf-8")
  text = text.replace("(examples)", "(docs/README.md#tutorials)")
  text = text.replace("[CITATION.cff](CITATION.cff)", "CITATION.cff")  # no page
  text = re.sub(r"\]\((?!docs/|https?:|#)", "](../", text)  # as docs/ names the others
  return re.sub(r"\]\(docs/", "](", text)


def example(path):
  """A script as a page: what it says at its top, and its code."""
  text = path.read_text(encoding="utf-8")
  if path.suffix == ".py":
    docstring = ast.get_docstring(ast.parse(text)) or ""
    code, language = text.split('"""', 2)[2], "python"
  else:
    comment = re.match(r"(?:#!.*\n)?((?:#.*\n)+)", text)
    docstring = re.sub(r"^# ?", "", comment[1], flags=re.M)
    code, language = text, "bash"
  title, _, rest = docstring.partition("\n")
  return (
    f"# {title.rstrip('.')}\n\n{rest.strip()}\n\n"
    f'```{language} title="examples/{path.name}"\n{code.strip()}\n```\n'
  )


def on_page_markdown(markdown, page, **kwargs):
  """Links out of docs/ lead to the pages made of those files."""
  del kwargs
  up = "../" * page.file.src_uri.count("/")
  for name, target in COPIED.items():
    markdown = markdown.replace(f"]({up}../{name}", f"]({up}{target}")
  return re.sub(
    rf"\]\({re.escape(up)}\.\./examples/(\w+)\.\w+", rf"]({up}examples/\1.md", markdown
  )


def on_page_content(content, **kwargs):
  """Formulas as MathML."""
  del kwargs
  return re.sub(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
    lambda match: f'<{match[1]} class="formula">{_formula(*match.groups())}</{match[1]}>',
    content,
    flags=re.S,
  )


def _formula(tag, source):
  return mathml(html.unescape(source).strip(), display=tag == "div")
