"""The page of one run."""

import re
from html.parser import HTMLParser

import pytest

from pecft_jax.report import write_page

VOID = {'meta', 'br'}


class Balanced(HTMLParser):
  """Collects text and checks that every element is closed."""

  def __init__(self, page):
    super().__init__()
    self.open, self.words, self.tags = [], [], []
    self.feed(page)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != 'style':
      self.words.append(data)

  @property
  def text(self):
    return re.sub(r'\s+', ' ', ''.join(self.words))


def page(path):
  return write_page(path).read_text(encoding='utf-8')


def test_page_is_written_into_the_work_directory(work):
  path = work()
  assert write_page(path) == path / 'report.html'


def test_page_needs_nothing_from_outside(work, bounds):
  text = page(work(beside=bounds))
  loaded = {value for _, a in Balanced(text).tags for key, value in a.items()
            if key in ('src', 'href', 'xlink:href')}  # fmt: skip
  assert all(value.startswith('#') for value in loaded)
  assert not re.search(r'<script|@import|<link|url\(http', text)


def test_page_is_deterministic(work, bounds):
  path = work(beside=bounds)
  assert page(path) == page(path)


def test_page_says_where_the_method_stands(work, bounds):
  text = Balanced(page(work(beside=bounds))).text
  assert 'ranpac: 85.0 % average accuracy' in text
  assert '+25.0 points over sequential fine-tuning, 10.0 points below joint training' in text
  assert 'closes 71 % of the gap' in text


def test_page_carries_what_a_result_needs(work):
  text = Balanced(page(work())).text.replace('\u202f', ' ')
  for fact in ('Split CIFAR-100', 'class-incremental, 3 tasks', 'task-agnostic', 'd1', 'vit_b16',
               'b1', '-1.0, 1.0', '[time, task]', 'RWalk', 'seed 0', '1.23 M', '3.15 MB',
               'peft.rank', 'natural, 0 to 19'):  # fmt: skip
    assert fact in text, fact


def test_task_aware_accuracy_is_told_apart(work):
  aware = [[0.95, None, None], [0.95, 0.95, None], [0.95, 0.95, 0.95]]
  text = Balanced(page(work(task_aware_accuracy_matrix=aware))).text
  assert 'Task-aware accuracy95.0' in text


def test_task_incremental_run_is_task_aware_as_it_is(work):
  aware = [[0.95, None, None], [0.95, 0.95, None], [0.95, 0.95, 0.95]]
  text = Balanced(page(work(scenario='task', task_aware_accuracy_matrix=aware))).text
  assert 'Task-aware accuracy' not in text
  assert 'task-aware: the task is given at test time' in text


def test_identity_is_shown_once(work):
  card = {'benchmark': 'Split CIFAR-100', 'class_order': [1, 0]}
  text = Balanced(page(work(config={'settings': {'epochs': 5}, 'identity': card}))).text
  assert 'settings.epochs' in text
  assert 'identity.' not in text


def test_running_run_is_marked(work, bounds):
  text = Balanced(page(work(finished=2, beside=bounds))).text
  assert 'running: 2 of 3 tasks' in text
  assert '+12.5 points over sequential fine-tuning' in text


@pytest.mark.parametrize('tasks', [1, 20])
def test_page_of_any_number_of_tasks(work, tasks):
  assert f'{tasks} tasks' in Balanced(page(work(tasks=tasks, drop=0.01))).text


def test_nothing_finished_is_still_a_page(work):
  assert 'no task finished yet' in Balanced(page(work(finished=0, log=False))).text


def test_only_the_matrix_is_needed(tmp_path):
  (tmp_path / 'results.json').write_text('{"accuracy_matrix": [[0.5, null], [0.4, 0.6]]}')
  text = Balanced(page(tmp_path)).text
  assert '50.0 % average accuracy' in text
  assert 'not recorded' in text


def test_names_are_escaped(work):
  bad = '<script>alert("x")</script> & co'
  card = {'benchmark': bad, bad: bad}
  text = page(work(method=bad, peft=bad, wrappers=[bad], config={bad: bad}, identity=card))
  assert '<script' not in text
  assert bad in Balanced(text).text


def test_broken_reference_does_not_hide_the_run(work, bounds):
  path = work(beside=bounds)
  (path / 'references' / 'joint' / 'results.json').write_text('{')
  assert 'Left out: reference joint' in Balanced(page(path)).text


def test_missing_results_are_an_error(tmp_path):
  with pytest.raises(ValueError, match='does not exist'):
    write_page(tmp_path)
