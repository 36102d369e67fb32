"""Several runs side by side."""

import json
import statistics

import pytest

from pecft_jax.report import comparison_markdown, write_comparison
from pecft_jax.report.groups import compare, deviation, final_average, mean


@pytest.fixture
def seeds(work):
  """Runs of one method that differ in their seed, in which each is a bit better."""

  def make(method, drop, count=3, **fields):
    return [
      work(f'{method}{s}', method=method, drop=drop - 0.01 * s, seed=s,
           config={'seed': s, 'workdir': f'{method}{s}', 'peft': {'rank': 8}}, **fields)
      for s in range(count)
    ]  # fmt: skip

  return make


def test_runs_that_differ_in_their_seed_are_one_group(seeds):
  found = compare(seeds('l2p', 0.1) + seeds('ranpac', 0.05))
  assert [(group.title, len(group.runs)) for group in found.groups] == [('ranpac', 3), ('l2p', 3)]
  assert found.warnings == found.notes == ()


def test_spread_is_the_sample_standard_deviation(seeds):
  group = compare(seeds('ranpac', 0.05)).groups[0]
  values = group.values(final_average)
  assert values == pytest.approx([0.85, 0.86, 0.87])
  assert (mean(values), deviation(values)) == pytest.approx((0.86, statistics.stdev(values)))
  assert deviation([0.5]) is None


def test_other_settings_are_another_group_and_named(work):
  paths = [work(f'r{r}', config={'peft': {'rank': r}, 'epochs': 5}, drop=r / 100) for r in (4, 8)]
  found = compare(paths)
  assert [group.label for group in found.groups] == [
    'ranpac · rank 4',
    'ranpac · rank 8',
  ]


def test_bounds_and_paths_do_not_make_another_experiment(work):
  paths = [
    work(f's{s}', seed=s, config={'flags': {'bounds': s == 0, 'data_dir': f'd{s}', 'seed': s}})
    for s in range(2)
  ]
  assert [group.label for group in compare(paths).groups] == ['ranpac']


def command(*arguments):
  return {'file': '/home/me/digits.py', 'arguments': list(arguments), 'directory': '/home/me'}


def test_seeds_of_one_command_are_one_group(work):
  # As `pecft run` writes it: the seed is among the flags and in the command.
  paths = [
    work(
      f's{s}',
      seed=s,
      config={
        'settings': {'file': 'digits', 'flags': {'seed': s, 'tasks': 3}},
        'seed': s,
        'command': command('--seed', str(s)),
      },
    )
    for s in range(3)
  ]
  # Seeds side by side are of the same experiment, too.
  paths += [
    work(
      'together',
      seed=3,
      config={
        'settings': {'file': 'digits', 'flags': {'seed': 0, 'tasks': 3}},
        'seeds_together': [3, 4],
        'seed': 3,
        'command': command('--seeds', '2'),
      },
    )
  ]
  found = compare(paths)
  assert [(group.label, len(group.runs)) for group in found.groups] == [('ranpac', 4)]
  assert found.notes == ()


def test_labels_name_what_differs_and_nothing_else(work):
  def config(rank, rate, seed):
    flags = {'peft_rank': rank, 'learning_rate': rate, 'seed': seed, 'batch_size': 32}
    return {
      'settings': {'file': 'digits', 'flags': flags},
      'method': {'peft': {'rank': rank}},
      'training': {'recipe': {'rate': rate}, 'batch_size': 32},
      'command': command('--peft-rank', str(rank), '--seed', str(seed)),
    }

  cases = [(4, 0.1), (8, 0.1), (8, 0.2)]
  paths = [
    work(f'{rank}-{rate}-{seed}', seed=seed, drop=rank / 200 + rate / 50,
         config=config(rank, rate, seed))
    for rank, rate in cases for seed in range(2)
  ]  # fmt: skip
  paths += [work('other', method='l2p', peft='', drop=0.2)]
  assert [group.label for group in compare(paths).groups] == [
    'ranpac · adapter · rank 4, rate 0.1',
    'ranpac · adapter · rank 8, rate 0.1',
    'ranpac · adapter · rank 8, rate 0.2',
    'l2p',
  ]


@pytest.mark.parametrize(
  ('field', 'value', 'warning'),
  [
    ('benchmark', 'Split ImageNet-R', 'benchmark: Split CIFAR-100 (a'),
    ('backbone_sha256', 'b2', 'backbone sha256: b1 (a'),
    ('backbone_sha256', None, 'against not recorded (b'),
    ('class_order', [*range(18), 19, 18], 'class order: 0, 1,'),
  ],
)
def test_unlike_identities_are_warned_of(work, tmp_path, field, value, warning):
  card = json.loads((work('a', method='a') / 'results.json').read_text())['identity']
  paths = [tmp_path / 'a', work('b', method='b', identity=card | {field: value})]
  found = compare(paths)
  assert warning in found.warnings[0]
  assert len(found.warnings) == 1
  page = write_comparison(paths, tmp_path / 'out.html').read_text(encoding='utf-8')
  assert 'role="alert"' in page
  assert 'class="best"' not in page  # No winner among what cannot be compared.
  markdown = comparison_markdown(paths)
  assert markdown.startswith('> **These runs are not of one experiment.**')
  assert '**8' not in markdown


def test_unlike_scenarios_are_warned_of(work):
  found = compare([work('a'), work('b', scenario='task'), work('c', tasks=4)])
  assert [line.split(':')[0] for line in found.warnings] == ['scenario', 'number of tasks']


def test_unfinished_runs_are_left_out_and_named(work):
  found = compare([work('a'), work('b', finished=2)])
  assert len(found.groups) == 1
  assert 'b, which has finished 2 of 3 tasks' in found.notes[0]


def test_same_seed_twice_is_noted(work):
  notes = compare([work('a'), work('b')]).notes
  assert notes == ('Seed 0 was run more than once; too little spread: ranpac',)


def test_one_seed_is_noted(work):
  assert compare([work()]).notes == ('One seed only, so no spread is known: ranpac',)


def test_page_leads_with_the_best(seeds, bounds, tmp_path):
  paths = seeds('l2p', 0.2) + seeds('ranpac', 0.05, beside=bounds)
  path = write_comparison(paths, tmp_path)
  page = path.read_text(encoding='utf-8').replace('\u202f', ' ')
  assert path == tmp_path / 'comparison.html'
  assert 'ranpac leads with 86.0 ± 1.0 %' in page
  assert 'in average accuracy, 15.0 points ahead of l2p' in page
  assert '<span class="best">86.0 ± 1.0</span>' in page
  assert 'joint training' in page
  assert page == write_comparison(paths, tmp_path).read_text(encoding='utf-8').replace(
    '\u202f', ' '
  )


def test_lead_within_the_spread_is_called_so(seeds, tmp_path):
  page = write_comparison(seeds('l2p', 0.055) + seeds('ranpac', 0.05), tmp_path / 'a' / 'b.html')
  assert 'which is within the spread over seeds' in page.read_text(encoding='utf-8')


def test_lead_of_single_seeds_is_called_uncertain(seeds, tmp_path):
  page = write_comparison(seeds('l2p', 0.2, 1) + seeds('ranpac', 0.05, 1), tmp_path)
  assert 'not known whether that is more than chance' in page.read_text(encoding='utf-8')


def test_markdown_has_one_row_for_each_group(seeds):
  lines = comparison_markdown(seeds('l2p', 0.2) + seeds('ranpac', 0.05)).splitlines()
  assert lines[0].startswith('| Method | PEFT | Seeds | Average accuracy (%) |')
  assert lines[2].startswith('| ranpac | adapter | 3 | **86.0 ± 1.0** | **88.0 ± 0.5** |')
  assert lines[3].startswith('| l2p | adapter | 3 | 71.0 ± 1.0 |')
  widths = {line.count('|') for line in lines[:4]}
  assert len(widths) == 1
  assert any('benchmark: Split CIFAR-100' in line and 'b1' in line for line in lines)


def test_labels_that_leave_no_room_are_numbers_in_figure_and_table(work, tmp_path):
  paths = [work(f'm{i}', method=f'{"x" * 60}{i}', drop=i / 50) for i in (1, 2)]
  page = write_comparison(paths, tmp_path).read_text(encoding='utf-8')
  assert f'<b>2 {"x" * 60}2</b>' in page
  assert f'2 {"x" * 33}…\u2002' in page
  short = write_comparison([work('a'), work('b', method='b')], tmp_path)
  assert '<b>b</b>' in short.read_text(encoding='utf-8')


def test_markdown_has_no_column_for_transforms_that_nobody_names(work):
  assert comparison_markdown([work(peft=None)]).startswith('| Method | Seeds | Average')


def test_nothing_finished_is_still_a_page(work, tmp_path):
  paths = [work(finished=1)]
  assert 'No finished run' in write_comparison(paths, tmp_path).read_text(encoding='utf-8')
  assert comparison_markdown(paths).startswith('- Left out')


def test_names_are_escaped(work, tmp_path):
  bad = '<script>|'
  paths = [work('a', method=bad), work('b')]
  assert '<script' not in write_comparison(paths, tmp_path).read_text(encoding='utf-8')
  assert '&lt;script>\\|' in comparison_markdown(paths)


def test_many_methods_have_a_figure(work, tmp_path):
  paths = [work(f'm{i}', method=f'm{i}', drop=0.02 * i) for i in range(12)]
  assert '<svg' in write_comparison(paths, tmp_path).read_text(encoding='utf-8')


def test_no_directory_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='at least one work directory'):
    write_comparison([], tmp_path)
