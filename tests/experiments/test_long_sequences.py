"""The bench of long sequences: its methods can be built, and its rows say what was measured."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

from pecft_jax.backbones import architecture
from pecft_jax.catalog import choose
from pecft_jax.typing import Capacity

FILE = pathlib.Path(__file__).parents[2] / 'experiments' / 'long_sequences.py'
SPEC = importlib.util.spec_from_file_location('long_sequences', FILE)
long_sequences = importlib.util.module_from_spec(SPEC)
sys.modules['long_sequences'] = long_sequences
SPEC.loader.exec_module(long_sequences)


@pytest.mark.parametrize('case', long_sequences.CASES)
def test_every_method_can_be_built_for_three_hundred_tasks(case):
  *wrap, method = case.split()
  choice = choose(method, wrap=','.join(wrap), set=long_sequences.CASES[case])
  built = choice.build(architecture('vit_glyphs16'), Capacity(tasks=300, classes=900))
  assert built.capacity.tasks == 300


def test_classes_are_taken_in_four_rotations(tmp_path):
  images = np.zeros((4, 16, 16, 1), np.uint8)
  images[:, 0, 5] = 255
  np.savez(tmp_path / 'a.npz', images=images, labels=[0, 0, 1, 1], class_names=['a', 'b'])
  found = long_sequences.rotated(tmp_path / 'a.npz', 1)
  assert found.class_names[-1] == 'b 270'
  bright = [tuple(np.argwhere(image[..., 0])[0]) for image in found.inputs[np.arange(8)][::2]]
  assert bright == [(0, 5), (10, 0), (15, 10), (5, 15)]


def test_a_row_compares_the_first_and_the_last_fifth():
  seconds = [9.0, 1.0, 1.0, *[5.0] * 4, 3.0, 3.0]
  row = long_sequences.line_of(
    {
      'case': 'ease',
      'tasks': 10,
      'seconds': seconds,
      'resident_bytes': [0, 0, *[10**6] * 7, 3 * 10**6],
      'compiled': [5, 8, *[8] * 7, 9],
      'carried_bytes': 2 * 10**6,
      'passes': 10.0,
      'accuracy': 0.5,
    }
  )
  cells = [cell.strip() for cell in row.strip('|').split('|')]
  assert cells[:6] == ['ease', '10', '1.000', '3.000', '3.00', '1']
  assert cells[6:] == ['2 MB', '2 MB', '10', '50.0']
