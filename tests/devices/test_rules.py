"""Rules as they are written; what they do to leaves is in test_sharding."""

import pytest

from pecft_jax.devices.rules import Rule, read_rule, written


@pytest.mark.parametrize(
  ('text', 'rule'),
  [
    ('head/kernel$=model,-', Rule('head/kernel$', ('model', None))),
    ('buffer/items/ = data, ...', Rule('buffer/items/ ', ('data', ...))),
    ('(?=gram)=', Rule('(?=gram)', ())),
  ],
)
def test_rules_are_read_from_a_command_line(text, rule):
  assert read_rule(text) == rule


def test_axes_are_written_as_they_are_read():
  axes = ('data', ..., None, 'model')
  assert read_rule(f'x={written(axes)}').axes == axes
  assert written(()) == 'whole'


@pytest.mark.parametrize('text', ['gram$', '=data', 'x=data,,model', 'x=...,data,...'])
def test_what_is_no_rule_is_refused(text):
  with pytest.raises(ValueError, match='expected a sharding rule as PATTERN=axis,axis'):
    read_rule(text)


def test_a_broken_pattern_is_refused():
  with pytest.raises(ValueError, match=r"sharding rule '\(x=data': pattern '\(x' is no regular"):
    read_rule('(x=data')
