"""Where runs were made, and what is said beside their times."""

import pytest

from pecft_jax.environment import environment
from pecft_jax.report import comparison_markdown, read_run, write_comparison, write_page
from pecft_jax.report.environments import different, lines, on_times

HERE = {
  'versions': {'jax': '0.10.0', 'optax': '0.2.5'},
  'commit': 'a' * 40,
  'device': 'cpu',
  'devices': 1,
  'processor': 'one',
}


def elsewhere(**entries):
  return {**HERE, **entries}


def said(*paths):
  return different(map(read_run, paths))


@pytest.mark.parametrize(
  ('entries', 'expected'),
  [
    ({'device': 'NVIDIA H100'}, 'device: cpu / NVIDIA H100'),
    ({'devices': 8}, 'devices: 1 / 8'),
    ({'processor': 'two'}, 'processor: one / two'),
    ({'versions': {'jax': '0.11.0', 'optax': '0.2.5'}}, 'jax: 0.10.0 / 0.11.0'),
    ({'commit': f'{"b" * 40}-dirty'}, f'commit: {"a" * 12} / {"b" * 12}-dirty'),
    ({'processor': 'two', 'devices': 8}, 'devices: 1 / 8; processor: one / two'),
  ],
)
def test_what_differs_is_said_by_key(work, entries, expected):
  paths = work('a', environment=HERE), work('b', environment=elsewhere(**entries))
  assert said(*paths) == f'Made in different environments, so times do not compare: {expected}'


def test_nothing_is_said_of_one_environment_at_other_times(work):
  paths = [work(d, environment=elsewhere(started=d, ended=d, resumed=[])) for d in 'ab']
  assert said(*paths) is None
  assert said(work('old'), work('older')) is None


def test_runs_that_do_not_tell_are_counted(work):
  paths = work('a', environment=HERE), work('b'), work('c', environment=HERE)
  assert said(*paths).endswith('not recorded in 1 of 3 runs')


def test_a_run_that_was_resumed_elsewhere_has_several(work):
  resumed = work('a', environment=elsewhere(device='gpu', resumed=[elsewhere(device='gpu')]),
                 config={'environment': HERE})  # fmt: skip
  assert said(resumed).endswith('compare: device: cpu / gpu')


def test_the_entries_are_those_that_a_run_records(work):
  here = environment()
  other = {**here, 'processor': 'two', 'versions': {**here['versions'], 'jax': '0'}}
  found = said(work('a', environment=here), work('b', environment=other))
  assert f'jax: {here["versions"]["jax"]} / 0' in found
  assert f'processor: {here["processor"]} / two' in found


def test_pages_and_markdown_say_it_beside_the_times(work, tmp_path):
  paths = work('a', environment=HERE), work('b', method='b', environment=elsewhere(device='gpu'))
  expected = 'times do not compare: device: cpu / gpu.'
  page = write_comparison(paths, tmp_path / 'page.html').read_text(encoding='utf-8')
  assert page.count(expected) == 1
  assert page.index('What they cost') < page.index(expected) < page.index('Training time')
  assert expected in comparison_markdown(paths)
  assert 'different environments' not in comparison_markdown([paths[0]])


def test_the_page_of_a_run_says_it_of_its_bounds(work, bounds):
  bounds['joint']['environment'] = elsewhere(device='gpu')
  bounds['finetune']['environment'] = HERE
  page = write_page(work(environment=HERE, beside=bounds)).read_text(encoding='utf-8')
  assert page.count('times do not compare: device: cpu / gpu.') == 1


def test_times_of_seeds_side_by_side_are_said_to_be_those_of_all(work, tmp_path):
  together = work('b', efficiency={'seconds_per_task': [9.0] * 3, 'seeds_together': 3})
  text = 'Times and memory are those of {} runs side by side'
  assert on_times([read_run(together)]) == f'{text.format(3)}.'
  paths = work('a'), together
  expected = f'{text.format("1 or 3")}, and do not compare.'
  assert expected in write_comparison(paths, tmp_path).read_text(encoding='utf-8')
  assert expected in comparison_markdown(paths)
  assert on_times([read_run(paths[0])]) == ''


@pytest.mark.parametrize(('processor', 'marked'), [('one', True), ('two', False)])
def test_the_least_memory_is_marked_only_where_runs_were_made_alike(work, processor, marked):
  peaks = {'a': 1234, 'b': 2345}
  paths = [work(name, method=name, efficiency={'peak_memory_bytes': peak},
                environment=elsewhere(processor=processor if name == 'b' else 'one'))
           for name, peak in peaks.items()]  # fmt: skip
  assert ('**1.23 kB**' in comparison_markdown(paths)) is marked


def test_a_damaged_entry_is_refused_by_name(work):
  with pytest.raises(ValueError, match=r'results.json: expected an object for environment, got 3'):
    read_run(work(environment=3))


def test_the_page_of_a_run_says_when_and_where(work):
  here = {**HERE, 'started': '2026-01-02T03:04:05+00:00', 'ended': '2026-01-02T04:04:05+00:00'}
  text = write_page(work(environment=here)).read_text(encoding='utf-8')
  for expected in ('2026-01-02 03:04:05 UTC', '2026-01-02 04:04:05 UTC', '1 x cpu', 'jax 0.10.0'):
    assert expected in text


def test_what_a_real_environment_has_is_shown(work):
  run = read_run(work(environment=dict(environment())))
  shown = dict(lines(run))
  assert f'jax {environment()["versions"]["jax"]}' in shown['Versions']
  assert shown['Python'] == environment()['python']
  assert shown['Started'] is None


def test_a_run_in_two_environments_says_so(work):
  run = read_run(work(environment=elsewhere(resumed=[elsewhere(device='gpu')])))
  assert 'device: cpu / gpu' in dict(lines(run))['Resumed elsewhere']


def test_a_run_without_an_environment_says_that(work):
  assert lines(read_run(work())) == [('Environment', None)]
