"""For the API reference: comments after fields document them, `import x as x` exports x, and
doctests are shown as code wherever they stand in a docstring.
"""

import re
import textwrap
from typing import Any

import griffe  # pyright: ignore[reportMissingImports]  -- of the extra `docs`

# A facade whose `__all__` is computed exports what it imports so.
_REEXPORT = re.compile(r'^from \S+ import (\w+) as \1$', re.MULTILINE)
_COMMENT = re.compile(r'\s#\s(.+)$')


_DOCTEST = re.compile(r'(?:^[ ]*>>>.*\n?(?:^(?![ ]*$).*\n?)*\n*)+', re.MULTILINE)


def _as_section(match: re.Match[str]) -> str:
  lines = textwrap.dedent(match[0].rstrip()).splitlines()
  return 'Examples:\n' + '\n'.join(f'  {line}'.rstrip() for line in lines) + '\n\n'


class FieldComments(griffe.Extension):
  """Reads `a: Array  # [d_in, r], zeros at init.` as if the comment were a docstring."""

  def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
    """Called by griffe for every attribute of a class or module."""
    del kwargs
    if attr.docstring or attr.lineno is None or not isinstance(attr.parent, griffe.Class):
      return
    lines = attr.lines_collection[attr.filepath]
    comment = _COMMENT.search(lines[attr.lineno - 1])
    if comment:
      attr.docstring = griffe.Docstring(comment[1], lineno=attr.lineno, parent=attr)

  def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
    """Called by griffe once the members of a module are known."""
    del kwargs
    if '__all__' in mod.members and not mod.exports:
      names = _REEXPORT.findall('\n'.join(mod.lines))
      constants = [name for name in mod.members if name.isupper()]
      mod.exports = [*constants, *names]

  def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
    """Called by griffe for every object, after the hook of its kind."""
    del kwargs
    if obj.docstring and '>>>' in obj.docstring.value:
      text = re.sub(r'^[ ]*Examples?:[ ]*\n', '', obj.docstring.value, flags=re.MULTILINE)
      obj.docstring.value = _DOCTEST.sub(_as_section, text)
