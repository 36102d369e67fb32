import functools
import io

from plan_steps import CAPACITY, RECIPE, backbone_of, frozen_of
from rich.console import Console

from pecft_jax.catalog import method_by_name
from pecft_jax.plan import CHIPS, Chip, plan
from pecft_jax.plan.page import amount, chip_rows, expected, memory_rows, print_plan, step_rows


@functools.cache
def planned(name='finetune'):
  method = method_by_name(name, backbone_of('small'), CAPACITY)
  return plan(method, backbone_of('small'), frozen_of('small'), RECIPE, batch_size=8)


def chip(memory):
  return Chip('toy', 1e12, 1e12, memory, 1e9, 1e9, ('none',))


def test_amounts_have_three_digits_and_a_prefix():
  assert amount(0, 'B') == '0 B'
  assert amount(999, 'B') == '999 B'
  assert amount(1234, 'B') == '1.23 kB'
  assert amount(999_600, 'B') == '1 MB'
  assert amount(4.158e12, 'FLOP') == '4.16 TFLOP'


def test_each_kind_of_memory_has_a_line_of_its_own():
  labels = [label for label, _ in memory_rows(planned())]
  assert labels[:4] == ['frozen weights', 'trained parameters', 'gradients', 'optimizer state']
  assert labels[-2:] == ['activations, estimated', 'total']


def test_steps_are_told_in_the_units_of_their_inputs():
  rows = dict(step_rows(planned()))
  assert rows['a prediction, per image'] == amount(planned().predict, 'FLOP')
  assert 'a pass over a batch, in float32' in dict(step_rows(planned('simplecil')))


def test_a_chip_has_room_for_the_total_or_not():
  total = planned().memory.total
  fits = [expected(planned(), chip(size), 0.5).fits for size in (total, total - 1)]
  assert fits == ['yes', 'no']


def test_twice_the_share_of_the_roofline_is_twice_the_rate():
  one, two = (expected(planned(), CHIPS['h100'], share).rate for share in (0.3, 0.6))
  assert two == 2 * one
  (row,) = chip_rows(planned(), [chip(1e9)], 0.5)
  assert row[0] == 'toy'
  assert row[4] == 'memory'


def test_the_page_names_what_is_assumed():
  console = Console(file=io.StringIO(), width=200)
  chips = list(CHIPS.values())
  print_plan(planned(), chips, utilisation=0.37, growth={1: '1 kB', 10: '9 kB'}, console=console)
  text = console.file.getvalue()
  assert all(each.name in text for each in chips)
  assert '37% is assumed to be reached' in text
  assert '1 task ' in text
  assert '10 tasks' in text
  assert 'finetune on vit, batches of 8, mesh data=1' in text
