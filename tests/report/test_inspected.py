"""What a person reads of a work directory."""

import io

from rich.console import Console

from pecft_jax.report.inspected import print_inspected, problems_of

CHECKPOINT = {
  'tick': 40, 'bytes': 20_500, 'problem': None, 'verified': True, 'task': 1, 'phase': 'train',
  'batch': 7, 'rows': 12, 'written': '2026-02-03T04:05:06+00:00', 'state_sha256': 'f' * 64,
}  # fmt: skip
FACTS = {
  'directory': 'runs/a', 'status': 'stopped', 'process': None, 'method': 'derpp(olora)', 'seed': 3,
  'finished': 1, 'total': 5, 'average_accuracy': 0.875,
  'identity': {'benchmark': 'digits', 'split_digest': 'ab' * 32, 'backbone': 'vit'},
  'settings': {'file': 'x', 'flags': {'rate': 0.1, 'peft': None}}, 'training': {'epochs': 2},
  'checkpoints': [CHECKPOINT],
  'state': [{'name': 'memory', 'leaves': 3, 'bytes': 3_000_000, 'share': 0.75},
            {'name': 'params', 'leaves': 2, 'bytes': 1_000_000, 'share': 0.25}],
  'leaves': [{'name': 'memory/gram', 'shape': [5, 6], 'dtype': 'float32', 'bytes': 120}],
  'log': {'rows': 12, 'train': 11, 'eval': 1}, 'damaged': {'39': 100},
  'unfinished': {'41.orbax-checkpoint-tmp': 200}, 'files': {'metrics.jsonl': 1_500},
  'bytes': 22_300, 'references': {}, 'problems': [],
}  # fmt: skip


def _printed(facts, **options) -> str:
  console = Console(file=io.StringIO(), width=100)
  print_inspected(facts, console, **options)
  return ' '.join(console.file.getvalue().split())


def test_all_facts_are_there():
  text = _printed(FACTS)
  assert 'runs/a: derpp(olora), stopped, 1 of 5 tasks finished, 87.5 % average accuracy' in text
  assert 'split: abababababab ' in text
  assert 'settings: file=x, rate=0.1' in text
  assert '40 task 2, train 7 2026-02-03' in text
  assert '20.5 kB verified' in text
  assert '41.orbax-checkpoint-tmp 200 B unfinished 39 100 B aside' in text
  assert 'memory 3 3 MB 75.0 % params 2 1 MB 25.0 % total 5 4 MB' in text
  assert 'metrics.jsonl 1.5 kB 12 rows: 11 train, 1 eval' in text
  assert 'no problems; arrays read, digests hold' in text
  assert 'gram' not in text
  assert 'memory/gram [5, 6] float32 120 B' in _printed(FACTS, leaves=True)


def test_problems_come_last_with_those_of_references():
  unread = {'tick': 41, 'bytes': 5, 'problem': 'checkpoint 41 is damaged', 'verified': False}
  broken = {**FACTS, 'problems': ['config.json is missing'], 'checkpoints': [CHECKPOINT, unread]}
  facts = {**broken, 'references': {'joint': {**FACTS, 'problems': ['what']}}}
  text = _printed(facts)
  assert '41 5 B damaged' in text
  assert 'reference joint: stopped, 1 of 5 tasks' in text
  assert text.endswith('problem: config.json is missing problem: reference joint: what')
  assert problems_of(facts) == ['config.json is missing', 'reference joint: what']
  assert problems_of(FACTS) == []


def test_a_bare_directory_can_be_printed():
  nothing = {'identity': {}, 'settings': {}, 'training': {}, 'damaged': {}, 'unfinished': {}}
  bare = {**FACTS, **nothing, 'checkpoints': [], 'state': [], 'leaves': [], 'files': {}}
  assert 'no problems' in _printed({**bare, 'method': None, 'average_accuracy': None}, leaves=True)
