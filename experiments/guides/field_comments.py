"""For the API reference: the comment after a field is the documentation of that field."""

import re
from typing import Any

import griffe

_COMMENT = re.compile(r'\s#\s(.+)$')


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
