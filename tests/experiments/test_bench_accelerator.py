"""The bench of an accelerator runs anywhere in small sizes, with what a plain machine has."""

import json
import pathlib
import subprocess
import sys
import textwrap

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / 'experiments'))

import bench_accelerator as bench
import bench_ours

EXPERIMENTS = pathlib.Path(bench.__file__).parent


def test_a_run_needs_neither_grain_nor_tyro_and_goes_on_after_a_failure(tmp_path):
  code = f"""
    import sys
    class Refused:
      def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('grain', 'tyro', 'docstring_parser', 'tensorflow_datasets'):
          raise ImportError(name)
    sys.meta_path.insert(0, Refused())
    sys.path.insert(0, {str(EXPERIMENTS)!r})
    import bench_accelerator as bench
    bench.run_one = lambda entry, kept, *, small, seconds, limit: (
      {{**entry._asdict(), 'error': 'none'}} if entry.contest == 'feed'
      else bench.measure(entry, small=small, seconds=seconds)
    )
    bench.PLAN = tuple(bench.Entry('ours', name) for name in ('feed', 'matmul', 'lora'))
    bench.main(['--tiny', '--out', {str(tmp_path)!r}])
  """
  subprocess.run([sys.executable, '-c', textwrap.dedent(code)], check=True, capture_output=True)
  rows = [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()]
  assert [row['contest'] for row in rows] == ['feed', 'matmul', 'lora']
  assert rows[0]['error'] == 'none' and rows[2]['temporaries MB'] > 0
  assert 'ours lora' in (tmp_path / 'table.md').read_text()


def test_a_language_model_of_ours_is_a_row():
  row = bench.measure(bench.Entry('ours', 'llama8b'), small=True, seconds=0)
  assert row['per s'] > 0 and row['unit'] == 'tokens'


def test_a_contestant_of_the_peers_is_a_row():
  for name in ('torch', 'timm', 'transformers', 'peft'):
    pytest.importorskip(name)
  row = bench.measure(bench.Entry('peers', 'lora'), small=True, seconds=0)
  assert row['per s'] > 0 and row['device'] == 'cpu'


def test_the_plan_names_contests_and_variants_that_there_are():
  for entry in bench.PLAN:
    rig = bench.rig_of(entry, small=False)
    assert entry.side != 'ours' or entry.contest in {**bench_ours.CONTESTS, **rig.texts}
  assert len(set(bench.PLAN)) == len(bench.PLAN)
  assert bench.GOALS.keys() | bench.PUBLISHED.keys() | bench.LONG.keys() <= set(bench.CONTESTS)


def test_a_contestant_that_fails_is_told_by_its_message(tmp_path, monkeypatch):
  script = tmp_path / 'contestant.py'
  script.write_text("raise ValueError('no such thing')")
  monkeypatch.setattr(bench, '__file__', str(script))
  row = bench.run_one(bench.Entry('ours', 'lora'), str(tmp_path), small=True, seconds=0, limit=30)
  assert row['error'] == 'ValueError: no such thing'


def test_a_contestant_that_takes_too_long_is_ended(tmp_path, monkeypatch):
  script = tmp_path / 'contestant.py'
  script.write_text('import time\ntime.sleep(60)')
  monkeypatch.setattr(bench, '__file__', str(script))
  row = bench.run_one(bench.Entry('ours', 'lora'), str(tmp_path), small=True, seconds=0, limit=0.2)
  assert row['error'].startswith('took longer')


def test_shares_and_ratios_of_the_table():
  row = lambda side, contest, ms, **more: {
    **bench.Entry(side, contest)._asdict(), 'ms': ms, 'unit': 'images',
    'device': 'NVIDIA H100 80GB HBM3', **more
  }  # fmt: skip
  rows = [
    row('ours', 'matmul', 1.0, **{'per s': 1000.0, 'TFLOP/s': 800.0}),
    row('ours', 'lora', 2.0, **{'per s': 230.0, 'TFLOP/s': 400.0, 'MFU': 0.4}),
    row('peers', 'lora', 3.0, **{'per s': 200.0}),
    row('ours', 'llama8b', 4.0, **{'per s': 24_946.0}),
  ]
  cells = [line[2:-2].split(' | ') for line in bench.table(rows).splitlines()[2:]]
  at = bench.COLUMNS.index
  assert cells[1][at('of matmul')] == '0.50' and cells[1][at('of peer')] == '1.15'
  assert cells[1][at('goal')] == '1.10' and cells[2][at('of peer')] == ''
  assert cells[3][at('of peer')] == '2.00'  # Of what is published.


@pytest.mark.parametrize(
  ('device', 'rate'),
  [
    ('NVIDIA H100 80GB HBM3', 989.4e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('TPU v5 lite', 197e12),
    ('cpu', None),
  ],
)
def test_the_vendors_figure_of_a_device(device, rate):
  assert bench.vendors_rate(device, 'bfloat16') == rate
