"""What a meeting with peers comes to."""

import pathlib
import sys

import pytest

pytest.importorskip('tyro')
sys.path.append(str(pathlib.Path(__file__).parents[2] / 'experiments'))

import bench_ours
import bench_peers as bench
from contest import ON_CPU
from needed import needed

STEP = {'wall': 3.0, 'cpu': 5.0, 'rate': 200e9}
MET = {
  'facts': {'l2p': {'temporaries MB': 1106.0}, 'l2p_cached': {'temporaries MB': 900.0}},
  'rounds': [
    {
      'ours/l2p': STEP,
      'ours/l2p_cached': {**STEP, 'wall': 2.0},
      'peers/l2p': {**STEP, 'wall': 4.0, 'rate': 80e9},
    },
    {
      'ours/l2p': {**STEP, 'wall': 3.5, 'cpu': 6.0, 'rate': 150e9},
      'ours/l2p_cached': STEP,
      'peers/l2p': {**STEP, 'wall': 5.0, 'rate': 100e9},
    },
  ],
}
ROWS = {row.ours: row for row in (*bench.ROWS, *bench.MORE)}


def test_the_best_step_counts_and_the_best_rate():
  found = bench.result(ROWS['l2p'], MET, ON_CPU)
  assert found.ours == {'wall': 3.0, 'cpu': 5.0, 'rate': 200e9}
  assert found.peers['wall'] == 4.0 and found.peers['rate'] == 100e9


def test_a_ratio_at_equal_rates():
  found = bench.result(ROWS['l2p'], MET, ON_CPU)
  # Its products are twice as slow: at our rate the peer would take half as long.
  assert found.ratio == 0.75 and found.equal == 1.5


def test_a_share_of_the_roofline_is_of_what_the_contest_needs():
  found = bench.result(ROWS['l2p_cached'], MET, ON_CPU)
  assert found.share == pytest.approx(needed('l2p_cached', ON_CPU) / 200e9 / 2.0)
  assert found.peers_share == pytest.approx(needed('l2p', ON_CPU) / 100e9 / 4.0)


def test_the_page_has_a_row_for_each_of_ours_with_its_goals():
  rows = [ROWS['l2p'], ROWS['l2p_cached']]
  here = {'versions': {'jax': '0.10.2', 'orbax': None}, 'processor': 'A', 'python': '3.11'}
  page = bench.page([(row, bench.result(row, MET, ON_CPU)) for row in rows], here, 2)
  assert '2 threads on A, Python 3.11, jax 0.10.2.' in page
  first, second = page.splitlines()[-2:]
  assert '| 0.75 | 1.5 | 0.88 | 200 : 100 |' in first and '1106 (goal 1200)' in first
  assert '| 0.5 | 1 | 0.6 |' in second


def test_rows_name_contests_of_both_sides():
  assert {row.ours for row in ROWS.values()} <= {*bench_ours.CONTESTS, *ON_CPU.texts}
  for name in ('torch', 'timm', 'transformers', 'peft'):
    pytest.importorskip(name)
  import bench_torch

  theirs = {*bench_torch.CONTESTS, *ON_CPU.texts, 'by_hand'}
  assert {row.peers for row in ROWS.values()} <= theirs
