"""Work directories as the trainer writes them."""

import json

import numpy as np
import pytest

IDENTITY = {
  'benchmark': 'Split CIFAR-100',
  'class_order': list(range(20)),
  'split_digest': 'd1',
  'backbone': 'vit_b16',
  'backbone_sha256': 'b1',
  'value_range': [-1.0, 1.0],
}


def matrix(tasks, finished, drop, learned=0.9):
  """Each task loses `drop` with every later one; null where not evaluated."""
  rows = [[learned - drop * (t - j) for j in range(t + 1)] for t in range(finished)]
  return [row + [None] * (tasks - len(row)) for row in rows + [[]] * (tasks - finished)]


@pytest.fixture
def work(tmp_path):
  """Writes a work directory; `beside` has the references by name, as keywords of their own."""

  def write(name='run', *, tasks=3, finished=None, drop=0.05, beside=None, log=True, **fields):
    path = tmp_path / name
    path.mkdir(parents=True)
    k = tasks if finished is None else finished
    config = fields.pop('config', {'seed': 0, 'peft': {'rank': 8}})
    results = {
      'name': 'demo',
      'status': 'done' if k == tasks else 'running',
      'axis': ['time', 'task'],
      'accuracy_matrix': matrix(tasks, k, drop, fields.pop('learned', 0.9)),
      'scenario': 'class',
      'test_sizes': [100] * tasks,
      'tasks': [f'task {j + 1}' for j in range(tasks)],
      'method': 'ranpac',
      'peft': 'adapter',
      'wrappers': [],
      'metrics': {},
      'efficiency': {
        'trainable_parameters': 1_234_567,
        'carried_state_bytes': 3 * 2**20,
        'forward_passes_per_prediction': 1.0,
        'seconds_per_task': [10.0] * k,
      },
      'identity': dict(IDENTITY),
      'seed': 0,
      'compilations': {'train': 1},
    } | fields
    results = {key: value for key, value in results.items() if value is not ...}
    (path / 'results.json').write_text(json.dumps(results), encoding='utf-8')
    if config is not None:
      (path / 'config.json').write_text(json.dumps(config), encoding='utf-8')
    if log:
      losses = np.geomspace(2, 0.1, 5)
      rows = [
        {'kind': 'train', 'task': t, 'step': 5 * t + i, 'loss': float(loss)}
        for t in range(k)
        for i, loss in enumerate(losses)
      ]
      (path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    for key, options in (beside or {}).items():
      write(f'{name}/references/{key}', **{'tasks': tasks, 'method': key} | options)
    return path

  return write


BOUNDS = {'finetune': {'drop': 0.3}, 'joint': {'drop': 0.0, 'learned': 0.95}}


@pytest.fixture
def bounds():
  return {name: dict(options) for name, options in BOUNDS.items()}
