"""Layers whose weights are kept in one array.

A module that holds several linear maps is named by their names, and its arrays
have a leading axis for them: `qkv` [3, d_in, d_out] is q, k and v, `gate_up`
[2, d_in, d_out] is gate and up. The name is the declaration: nothing else
says, or needs to say, what is fused.
"""


def parts_of(name: str) -> tuple[str, ...]:
  """The linear maps that a module's name declares.

  >>> parts_of('qkv'), parts_of('gate_up')
  (('q', 'k', 'v'), ('gate', 'up'))

  Args:
    name: of the module; parts are its letters, or its words where it has `_`.
  """
  return tuple(name.split('_')) if '_' in name else tuple(name)
