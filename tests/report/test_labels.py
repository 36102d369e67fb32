"""Short labels."""

from pecft_jax.report.labels import differing, short


def test_settings_of_equal_values_are_named_once():
  runs = [{'flags.rank': r, 'method.peft.options.rank': r, 'epochs': 2} for r in (4, 8)]
  assert [differing(run, runs) for run in runs] == ['rank 4', 'rank 8']


def test_settings_that_differ_together_are_all_named():
  runs = [{'rank': r, 'epochs': e} for r, e in ((4, 1), (8, 2))]
  assert differing(runs[0], runs) == 'epochs 1, rank 4'


def test_settings_that_differ_otherwise_are_all_named():
  runs = [{'a': 0, 'b': 0}, {'a': 0, 'b': 1}, {'a': 1, 'b': 1}]
  assert [differing(run, runs) for run in runs] == ['a 0, b 0', 'a 0, b 1', 'a 1, b 1']


def test_a_name_is_as_long_as_needed():
  names = ['method.rate', 'training.rate', 'training.batch_size']
  assert [short(name, names) for name in names] == ['method.rate', 'training.rate', 'batch size']


def test_absent_settings_are_told():
  runs = [{'a': 1}, {}]
  assert [differing(run, runs) for run in runs] == ['a 1', 'a None']


def test_long_values_and_many_settings_are_cut():
  runs = [{'path': 'x' * 100}, {'path': 'y'}]
  assert len(differing(runs[0], runs)) < 40
  runs = [{c: int(i == j) for j, c in enumerate('abcdef')} for i in range(6)]
  assert differing(runs[0], runs) == 'a 1, b 0, c 0, 3 more'
