"""The line of progress at any width."""

import pytest

from pecft_jax.train.line import Shown, drawn, fitted, plain

LONG = Shown(
  'reference finetune', 0.345, 'task 12/100', ('epoch 10/20', 'step 1200/2400', 'loss 0.123'),
  '12:34:56 left',
)  # fmt: skip


@pytest.mark.parametrize('width', range(20, 140))
def test_it_is_never_wider_than_the_room(width):
  assert len(fitted(LONG, width)) <= width


@pytest.mark.parametrize(
  ('width', 'there', 'gone'),
  [
    (140, ('━', 'epoch', 'step', 'loss'), ()),
    (100, ('epoch', 'step', 'loss'), ('━',)),
    (77, ('epoch',), ('━', 'loss')),
    (57, ('reference finetune',), ('epoch',)),
    (37, ('34 %', 'task 12/100'), ('reference finetune',)),
  ],
)
def test_what_goes_first_is_what_counts_least(width, there, gone):
  line = fitted(LONG, width)
  assert all(part in line for part in (*there, '34 %', 'task 12/100', '12:34:56 left')), line
  assert not any(part in line for part in gone), line


def test_a_log_has_all_parts():
  assert plain(LONG) == (
    'reference finetune: 34 % task 12/100 · epoch 10/20 · step 1200/2400 · loss 0.123 · '
    '12:34:56 left'
  )


def test_the_bar_ends_where_the_share_does():
  assert drawn(0.5, 4) == '━━──'
  assert drawn(1.5, 3) == '━━━'
  assert drawn(0.2, 0) == ''
