"""What mkdocstrings should know of our docstrings: an extension of griffe.

- Indented lines in the docstrings of methods and optimizers are formulas, see `formulas`.
- Paragraphs that begin with the names of arguments, "specs: V strings", are a table of these.
- The comments behind the fields of a class are a table in its docstring.
"""

import importlib.util
import re
from pathlib import Path

import griffe

_spec = importlib.util.spec_from_file_location(
  "formulas", Path(__file__).with_name("formulas.py")
)
formulas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(formulas)

WITH_FORMULAS = ("okdph_jax.methods", "okdph_jax.optimizers")


class Docstrings(griffe.Extension):
  def on_package(self, *, pkg, loader, **kwargs):
    del loader, kwargs
    for obj in walk(pkg):
      if obj.is_class and obj.docstring and (fields := list(commented(obj))):
        rows = [f"  {name}: {text}" for name, text in fields]
        obj.docstring.value += "\n\nAttributes:\n" + "\n".join(rows)
      if obj.is_function and obj.docstring:
        if obj.path.startswith(WITH_FORMULAS):
          obj.docstring.value = with_formulas(obj.docstring.value)
        obj.docstring.value = with_arguments(obj.docstring.value, names(obj))


def walk(obj):
  """The object and all that it defines."""
  yield obj
  for member in obj.members.values():
    if not member.is_alias:
      yield from walk(member)


def names(function):
  return [p.name.lstrip("*") for p in function.parameters]


def commented(cls):
  """(field, comment) of the fields `name: type = value  # comment`."""
  lines = cls.filepath.read_text(encoding="utf-8").splitlines()
  for field in cls.attributes.values():
    _, mark, text = lines[field.lineno - 1].partition("  # ")
    if mark and not text.startswith("pyright"):
      yield field.name, text


def with_formulas(text):
  """The docstring with its indented lines as display formulas."""
  paragraphs = text.split("\n\n")
  for i, paragraph in enumerate(paragraphs):
    if paragraph.startswith("    ") and ">>>" not in paragraph:
      made = (f"$$\n{formulas.latex(line)}\n$$" for line in formulas.lines(paragraph))
      paragraphs[i] = "\n\n".join(made)
  return "\n\n".join(paragraphs)


def with_arguments(text, known):
  """The docstring with the arguments that it explains, "a, b: ...", in a section "Args"."""
  first, *paragraphs = text.split("\n\n")
  args, rest = [], []
  for paragraph in paragraphs:
    parts = entries(paragraph, known) if known else None
    if parts is None:
      rest.append(paragraph)
    else:
      args += parts
  if not args:
    return text
  section = "Args:\n" + "\n".join(f"  {name}: {meaning}" for name, meaning in args)
  at = next((i for i, x in enumerate(rest) if x.startswith("Raises:")), len(rest))
  return "\n\n".join([first, *rest[:at], section, *rest[at:]])


def entries(paragraph, known):
  """[(argument, meaning), ...] of a paragraph that is nothing else, or None."""
  flowing = " ".join(line.strip() for line in paragraph.splitlines())
  name = "|".join(map(re.escape, known))
  start = rf"(?:^|(?<=[.;] )|(?<=\n))((?:{name})(?:(?:,| and) (?:{name}))*): "
  if not re.match(start, flowing):
    return None
  pieces = re.split(start, flowing)[1:]
  return [
    (argument.strip(), meaning.strip().rstrip(";"))
    for given, meaning in zip(pieces[::2], pieces[1::2], strict=True)
    for argument in re.split(r",| and ", given)
  ]
