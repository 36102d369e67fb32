"""Figures: valid SVG, text as text, the same bytes every time, at home in any page."""

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from pecft_jax.report import plots, read_run, svg

FIGURES = (plots.averages, plots.matrix, plots.forgetting, plots.training_loss)


@pytest.mark.parametrize('plot', FIGURES, ids=lambda plot: plot.__name__)
def test_figure_is_a_deterministic_element_of_its_own(work, bounds, plot):
  run = read_run(work(beside=bounds))
  text = plot(run)
  assert text == plot(run)
  assert ET.fromstring(text).tag.endswith('svg')
  # Neither rules nor images nor dates: nothing that reaches beyond the figure.
  assert not re.search(r'<style|<image|<metadata|url\(http|20\d\d-\d\d', text)
  assert 'var(--muted, #5b6776)' in text


@pytest.mark.parametrize('tasks', [1, 2, 5, 20])
@pytest.mark.parametrize('plot', FIGURES, ids=lambda plot: plot.__name__)
def test_any_number_of_tasks(work, plot, tasks):
  run = read_run(work(tasks=tasks, finished=max(tasks - 1, 1), drop=0.02))
  text = plot(run)
  assert ET.fromstring(text).tag.endswith('svg')
  assert not re.search(r'\b(nan|inf|None)\b', text)


def texts(figure):
  return [''.join(node.itertext()) for node in ET.fromstring(figure).iter() if 'text' in node.tag]


def test_matrix_shows_its_numbers_and_averages(work):
  found = texts(plots.matrix(read_run(work())))
  assert {'90.0', '85.0', '80.0', '87.5'} <= set(found)


def test_average_curve_names_method_and_bounds(work, bounds):
  found = ' '.join(texts(plots.averages(read_run(work(beside=bounds)))))
  assert 'ranpac\u200285.0' in found
  assert 'joint training\u200295.0' in found
  assert 'sequential fine-tuning\u200260.0' in found


def test_names_are_text_and_not_markup(work):
  name = '<b>$x_1$ & "y"'
  run = read_run(work(method=name))
  figure = plots.averages(run)
  assert name in ' '.join(texts(figure))
  assert '<b>' not in figure


def test_ids_do_not_meet_between_figures(work):
  run = read_run(work())
  found = [set(re.findall(r'\bid="([^"]+)"', plot(run))) for plot in FIGURES]
  assert sum(map(len, found)) == len(set().union(*found))
  inside = set(re.findall(r'href="#([^"]+)"', plots.forgetting(run)))
  assert inside <= found[2]


def test_method_without_training_has_no_loss_figure(work):
  assert plots.training_loss(read_run(work(log=False))) is None


@pytest.mark.parametrize('per_task', [True, False])
def test_steps_may_count_over_the_sequence_or_over_each_task(work, per_task):
  path = work(log=False)
  rows = [
    f'{{"kind": "train", "task": {t}, "step": {i if per_task else 4 * t + i}, "loss": 1.0}}'
    for t in range(3)
    for i in range(4)
  ]
  (path / 'metrics.jsonl').write_text('\n'.join(rows))
  found = plots.losses(read_run(path))
  assert [x.tolist() for x, _ in found.values()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_row_now_and_then_keeps_its_step_within_its_task(work):
  path = work(log=False)
  rows = [{'kind': 'train', 'task': t, 'step': 10, 'loss': 1.0} for t in range(3)]
  (path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  assert [x.tolist() for x, _ in plots.losses(read_run(path)).values()] == [[10], [21], [32]]


def test_repeated_steps_count_once_and_the_last_word_holds(work):
  path = work(log=False)
  row = '{"kind": "train", "task": 0, "step": 1, "loss": %s}'
  (path / 'metrics.jsonl').write_text('\n'.join([row % 5, row % 'NaN', row % 2]))
  assert plots.losses(read_run(path))[0][1].tolist() == [2.0]


def test_labels_are_moved_apart_as_little_as_possible():
  np.testing.assert_allclose(svg.spread([5.0, 1.0], 1.0), [5.0, 1.0])
  np.testing.assert_allclose(svg.spread([3.0, 3.0, 3.0], 1.0), [2.0, 3.0, 4.0])
  placed = svg.spread([1.0, 1.1, 5.0, 5.2, 1.3], 0.5)
  assert np.diff(np.sort(placed)).min() >= 0.5 - 1e-9
  assert placed.mean() == pytest.approx(13.6 / 5)
