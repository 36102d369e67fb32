"""Whole runs: what they leave behind, and that interruptions do not show."""

import json
import os
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import (
  TRAINING,
  outcome,
  quiet,
  silent,
  tiny_backbone,
  tiny_experiment,
  tiny_method,
  tiny_scenario,
  unmeasured,
)

from pecft_jax import recipes
from pecft_jax.continual import joint, ranpac
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.train import NonFiniteLoss, RunOptions, Stopped, adapted_after, run, run_seeds, sgd
from pecft_jax.typing import Capacity
from pecft_jax.workdir.checkpoint import Checkpoints
from pecft_jax.workdir.stored import Damaged

RUN = sys.modules['pecft_jax.train.running']  # The package shows the function of this name instead.

# That every method resumes in every phase: test_common.py.
INTERRUPTED = {'l2p': TRAINING._replace(cache_queries=True, recipe=sgd(0.05, accumulate=2))}


# Reads of damaged files leave coroutines of orbax behind.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture(scope='session')
def whole(tmp_path_factory):
  """`whole(method)`: the outcome of a run that was never interrupted, and its ticks."""
  done = {}

  def get(method: str):
    if method not in done:
      workdir = tmp_path_factory.mktemp('whole')
      run(_experiment(method), workdir, silent())
      done[method] = outcome(workdir), int(max(os.listdir(workdir / 'checkpoints'), key=int))
    return done[method]

  return get


def _experiment(method: str):
  return tiny_experiment(method, training=INTERRUPTED.get(method, TRAINING))


@pytest.mark.parametrize(
  'name', ["it's 100% äöü", 'lr=1e-3,peft=lora', 'a:b', '-dash', '#1 {b} $c & ~d;', 'two\nlines']
)
def test_relative_directories_of_any_name_resume(name, interrupt, whole, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  interrupt(5)
  with pytest.raises(Stopped):
    run(_experiment('finetune'), name, silent())
  interrupt(None)
  run(_experiment('finetune'), name, silent())
  assert outcome(tmp_path / name) == whole('finetune')[0]


@pytest.mark.parametrize('name', ['a[b]', 'a\\b', 'what?', 'gs://bucket/run'])
def test_directories_that_would_lose_checkpoints_are_refused_at_once(name, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r'expected a (local )?path'):
    run(_experiment('finetune'), name, silent())
  assert not os.listdir(tmp_path)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
  """An empty place for temporary files, which is the current directory, too."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(RUN.tempfile, 'tempdir', str(tmp_path))
  return tmp_path


def test_without_a_work_directory_nothing_stays_but_the_results(nowhere, whole):
  found = run(_experiment('finetune'), options=silent())
  assert unmeasured(found) == whole('finetune')[0]['results']
  assert os.listdir(nowhere) == []


def test_without_a_work_directory_no_checkpoint_is_written(nowhere, monkeypatch):
  monkeypatch.setattr(Checkpoints, 'save', None)
  assert run(_experiment('finetune'), options=silent())['status'] == 'done'


def test_seeds_need_no_work_directory(nowhere):
  found = run_seeds(_experiment('simplecil'), [0, 1], options=silent())
  assert [each['seed'] for each in found] == [0, 1]
  assert os.listdir(nowhere) == []


def test_without_a_work_directory_an_error_names_none(nowhere):
  with pytest.raises(NonFiniteLoss) as caught:
    run(tiny_experiment().replace(method=_gathering(np.nan)), options=silent())
  assert 'pecft-' not in str(caught.value)
  assert os.listdir(nowhere) == []


def test_processes_of_a_job_need_a_work_directory(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match='2 processes needs a work directory'):
    run(_experiment('finetune'))


def test_files_and_results(tmp_path):
  found = run(tiny_experiment(), tmp_path, silent(config={'flag': 1}))
  names = {'config.json', 'metrics.jsonl', 'metrics.csv', 'results.json', 'checkpoints'}
  assert names <= set(os.listdir(tmp_path))
  assert found == json.loads((tmp_path / 'results.json').read_text())
  assert found['status'] == 'done'
  assert found['axis'] == ['time', 'task']
  assert [[a is None for a in row] for row in found['accuracy_matrix']] == [
    [False, True],
    [False, False],
  ]
  assert found['seed'] == 0
  assert len(found['state_sha256']) == 64
  assert set(found['compilations'].values()) == {1}
  assert {'train', 'begin', 'end', 'predict'} == set(found['compilations'])
  assert {
    'average_accuracy',
    'average_incremental_accuracy',
    'forgetting',
    'bwt',
    'learning_accuracy',
  } <= set(found['metrics'])
  assert {
    'trainable_parameters',
    'carried_state_bytes',
    'forward_passes_per_prediction',
    'seconds_per_task',
  } <= set(found['efficiency'])
  assert found['identity']['split_digest'] == tiny_experiment().scenario.digest
  assert {'benchmark', 'class_order', 'backbone', 'backbone_sha256', 'value_range'} <= set(
    found['identity']
  )
  assert json.loads((tmp_path / 'config.json').read_text())['settings'] == {'flag': 1}


def test_rows_of_the_log(tmp_path):
  rows = []
  run(tiny_experiment(), tmp_path, silent(writers=(rows.append,)))
  assert rows == [
    json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
  ]
  train = [row for row in rows if row['kind'] == 'train']
  # 12 examples a task, twice, in batches of 4: a row after step 4, in the second epoch, and at
  # the end.
  assert [(row['task'], row['step'], row['epoch']) for row in train] == [
    (0, 4, 2),
    (0, 6, 2),
    (1, 4, 2),
    (1, 6, 2),
  ]
  assert [len(row['evaluated']) for row in rows if row['kind'] == 'eval'] == [1, 2]


@pytest.mark.slow
def test_stop_at_any_tick(whole, interrupt, tmp_path, method='derpp(olora)'):
  expected, ticks = whole(method)
  # A third of them, which come to lie in every phase; below, runs stop at each.
  for tick in range(1, ticks + 1, 3):
    workdir = tmp_path / str(tick)
    interrupt(tick)
    with pytest.raises(Stopped):
      run(_experiment(method), workdir, silent(save_every=1e9))
    interrupt(None)
    run(_experiment(method), workdir, silent(save_every=1e9))
    assert outcome(workdir) == expected, f'stopped at tick {tick}'


@pytest.mark.slow
@pytest.mark.parametrize('method', ['ease', 'l2p'])
def test_one_tick_a_life(method, whole, interrupt, tmp_path):
  expected, ticks = whole(method)
  interrupt(1)
  for _ in range(ticks):
    with pytest.raises(Stopped):
      run(_experiment(method), tmp_path, silent())
  run(_experiment(method), tmp_path, silent())
  assert outcome(tmp_path) == expected


@pytest.mark.slow
def test_crash_without_saving(whole, interrupt, tmp_path):
  expected, ticks = whole('derpp(olora)')
  for tick in range(1, ticks + 1, 2):
    workdir = tmp_path / str(tick)
    # Twice: before the first task was saved, and again somewhere after.
    for error in (RuntimeError('crash'), RuntimeError('again')):
      interrupt(tick, error)
      with pytest.raises(RuntimeError, match=str(error)):
        run(_experiment('derpp(olora)'), workdir, silent(save_every=1e9))
        raise error  # The second run may be done before that tick.
    interrupt(None)
    run(_experiment('derpp(olora)'), workdir, silent(save_every=1e9))
    assert outcome(workdir) == expected, f'crashed at tick {tick}'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_stop(number, whole, tmp_path):
  def ask(row):
    if row['kind'] == 'train' and row['task'] == 1:
      os.kill(os.getpid(), number)

  before = signal.getsignal(number)
  with pytest.raises(Stopped, match='task 1, train 4'):
    run(_experiment('ease'), tmp_path, silent(writers=(ask,)))
  assert signal.getsignal(number) is before
  assert json.loads((tmp_path / 'results.json').read_text())['status'] == 'running'
  run(_experiment('ease'), tmp_path, silent())
  assert outcome(tmp_path) == whole('ease')[0]


def test_a_finished_run_is_read_and_not_run(monkeypatch, tmp_path):
  first = run(tiny_experiment(), tmp_path, silent())
  (tmp_path / 'results.json').write_text('{"status": "do')  # It is remade from the checkpoint.
  monkeypatch.setattr(sys.modules['pecft_jax.train.job'], 'run_tasks', None)
  again = run(tiny_experiment(), tmp_path, silent())
  assert unmeasured(again) == unmeasured(first)
  assert json.loads((tmp_path / 'results.json').read_text()) == again


def test_damaged_checkpoints_are_passed_over(whole, interrupt, tmp_path):
  expected, _ = whole('ease')
  interrupt(11)
  for _ in range(2):
    with pytest.raises(Stopped):
      run(_experiment('ease'), tmp_path, silent())
  newest = tmp_path / 'checkpoints' / '22'
  for path in (newest / 'state').glob('d/*'):
    path.write_bytes(path.read_bytes()[:-9])
  interrupt(None)
  console = quiet()
  run(_experiment('ease'), tmp_path, RunOptions(console=console))
  assert 'checkpoint 22' in console.file.getvalue()
  assert 'going back' in console.file.getvalue()
  assert outcome(tmp_path) == expected
  assert (tmp_path / 'damaged' / '22').is_dir()


def test_without_a_good_checkpoint_it_stops_and_leaves_all_as_it_is(interrupt, tmp_path):
  interrupt(20)
  with pytest.raises(Stopped):
    run(_experiment('ease'), tmp_path, silent())
  for path in (tmp_path / 'checkpoints').glob('*/_CHECKPOINT_METADATA'):
    path.write_text(path.read_text().replace('"batch": ', '"batch": 1'))
  files = lambda: {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
  before = files()
  interrupt(None)
  with pytest.raises(Damaged, match=r'no checkpoint in .* is good'):
    run(_experiment('ease'), tmp_path, silent())
  assert files() == before
  (tmp_path / 'checkpoints').rename(tmp_path.with_name('evidence'))
  kept = files()
  with pytest.raises(ValueError, match=r'the checkpoints in .* are gone'):
    run(_experiment('ease'), tmp_path, silent())
  assert files() == kept


EMPTY = lambda at: [shutil.rmtree(path) for path in at.iterdir()]


@pytest.mark.parametrize('remove', [shutil.rmtree, EMPTY])
def test_a_finished_run_without_its_checkpoints_is_not_run_again(remove, tmp_path):
  run(tiny_experiment(), tmp_path, silent())
  before = outcome(tmp_path)
  remove(tmp_path / 'checkpoints')
  with pytest.raises(ValueError, match='to run again would overwrite the log and the results'):
    run(tiny_experiment(), tmp_path, silent())
  assert outcome(tmp_path) == before


def test_an_answer_that_is_no_number_ends_the_run(tmp_path):
  method = tiny_method('finetune')

  def predict(params, memory, env, x):
    answers = method.predict(params, memory, env, x)
    return jnp.where(env.task.index == 1, jnp.nan, answers)

  experiment = tiny_experiment().replace(method=method._replace(predict=predict))
  with pytest.raises(NonFiniteLoss, match='an answer to test set 0 is not a number, after task 1'):
    run(experiment, tmp_path, silent())
  assert json.loads((tmp_path / 'results.json').read_text())['status'] == 'running'


def _gathering(value, start=0.0):
  """SimpleCIL with a memory that begins with one number, and takes another in its pass."""
  inner = tiny_method('simplecil')

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    return params, {'inner': memory, 'extra': jnp.full(2, start)}

  def consolidate(params, memory, env, batch):
    found = inner.consolidate(params, memory['inner'], env, batch)
    return {'inner': found, 'extra': memory['extra'].at[0].set(value)}

  within = lambda hook: lambda params, memory, *rest: hook(params, memory['inner'], *rest)
  return inner._replace(
    init=init,
    consolidate=consolidate,
    forward=within(inner.forward),
    loss=within(inner.loss),
    predict=within(inner.predict),
    settings={'name': 'gathering', 'value': str(value)},
  )


@pytest.mark.parametrize('value', [jnp.nan, jnp.inf])
def test_a_pass_that_gathers_what_is_not_finite_ends_the_run(value, tmp_path):
  expected = r"memory/extra.* hold NaN or infinities after the pass 'consolidate' .*task 0"
  with pytest.raises(NonFiniteLoss, match=expected):
    run(tiny_experiment().replace(method=_gathering(value)), tmp_path, silent())


def test_what_begins_with_infinities_may_keep_some(tmp_path):
  experiment = tiny_experiment().replace(method=_gathering(1.0, start=jnp.inf))
  assert run(experiment, tmp_path, silent())['status'] == 'done'


def test_fewer_batches_than_are_accumulated_still_train(tmp_path):
  recipe = sgd(0.05, accumulate=1000)
  run(tiny_experiment(training=TRAINING._replace(recipe=recipe)), tmp_path, silent())
  found = adapted_after(tiny_experiment(training=TRAINING._replace(recipe=recipe)), tmp_path)
  assert float(jnp.abs(found.adapted.head.kernel).max()) > 1e-3


@pytest.mark.parametrize('parts', [2, 3, 5])
def test_micro_batches_are_one_batch_as_large_as_all(parts, tmp_path):
  """With a schedule, whether or not the steps of a task are a multiple of the parts."""
  kernels = []
  for name, each, size in (
    ('large', sgd(0.05), 4 * parts),
    ('small', sgd(0.05, accumulate=parts), 4),
  ):
    experiment = tiny_experiment(training=TRAINING._replace(recipe=each, batch_size=size))
    run(experiment, tmp_path / name, silent())
    kernels.append(adapted_after(experiment, tmp_path / name).adapted.head.kernel)
  np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-6)


def test_an_infinite_answer_ends_the_run(tmp_path):
  method = tiny_method('finetune')
  broken = method._replace(
    predict=lambda *args: method.predict(*args) + jnp.inf, settings={'name': 'x'}
  )
  with pytest.raises(NonFiniteLoss, match='an answer to test set 0 is not a number'):
    run(tiny_experiment().replace(method=broken), tmp_path, silent())


def test_ranpac_learns_from_an_image_a_class(tmp_path):
  found = run(
    tiny_experiment('ranpac', scenario=tiny_scenario(train=2, test=12)), tmp_path, silent()
  )
  assert found['accuracy_matrix'][0][0] > 0.5


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
  method = tiny_method('finetune')

  def loss(params, memory, env, batch, key):
    value, out = method.loss(params, memory, env, batch, key)
    return jnp.where((env.task.index == 1) & (batch.index == 3).any(), jnp.nan, value), out

  experiment = tiny_experiment().replace(method=method._replace(loss=loss))
  with pytest.raises(NonFiniteLoss) as info:
    run(experiment, tmp_path, silent(save_every=0))
  assert 'the loss is nan at task 1, step' in str(info.value)
  newest = max(os.listdir(tmp_path / 'checkpoints'), key=int)
  assert f'checkpoint {newest} in {tmp_path / "checkpoints"}' in str(info.value)
  # The same command fails in the same way, from a state that is still good.
  with pytest.raises(NonFiniteLoss) as again:
    run(experiment, tmp_path, silent(save_every=0))
  assert str(again.value) == str(info.value)
  assert json.loads((tmp_path / 'results.json').read_text())['status'] == 'running'


@pytest.mark.filterwarnings('ignore:overflow encountered in cast')
def test_parameters_that_are_no_numbers_are_never_saved(tmp_path):
  experiment = tiny_experiment(
    training=TRAINING._replace(recipe=recipes.recipe(optax.scale(1e10), 1e38))
  )
  with pytest.raises(NonFiniteLoss, match='not finite after task 0, step 1') as info:
    run(experiment, tmp_path, silent(save_every=0))
  newest = max(os.listdir(tmp_path / 'checkpoints'), key=int)
  assert newest == '1'
  assert f'last good checkpoint: checkpoint {newest}' in str(info.value)


def test_references_run_beside(interrupt, tmp_path):
  references = {name: tiny_method(name) for name in ('finetune', 'joint', 'single_task')}
  backbone, capacity = references['joint'].backbone, references['joint'].capacity
  references['joint'] = joint(backbone, capacity, peft=lora('.', rank=2), epochs=3)
  experiment = tiny_experiment('l2p', references=references, training=INTERRUPTED['l2p'])
  whole = run(experiment, tmp_path / 'whole', silent())
  assert set(whole['references']) == {'finetune', 'joint', 'single_task'}

  def learnt(at):
    found = json.loads((tmp_path / 'whole' / at / 'results.json').read_text())
    return np.diag(np.array(found['accuracy_matrix'], float))

  epochs = lambda at: json.loads((tmp_path / 'whole' / at / 'config.json').read_text())['training']
  assert epochs('references/joint')['epochs'] == 3  # Those that it brings.
  assert epochs('.') == epochs('references/finetune') != epochs('references/joint')
  own, star, single = (learnt(at) for at in ('.', 'references/joint', 'references/single_task'))
  assert whole['metrics']['intransigence'] == pytest.approx((star - own).mean())
  assert whole['metrics']['fwt'] == pytest.approx((own - single)[1:].mean())
  # Stopped in the first reference, whose ticks are counted on from the method's.
  ticks = int(max(os.listdir(tmp_path / 'whole/checkpoints'), key=int))
  interrupt(ticks + 5)
  with pytest.raises(Stopped):
    run(experiment, tmp_path / 'parts', silent())
  assert (tmp_path / 'parts/references/finetune').is_dir()
  interrupt(None)
  run(experiment, tmp_path / 'parts', silent())
  for part in ('.', 'references/finetune', 'references/joint', 'references/single_task'):
    assert outcome(tmp_path / 'parts' / part) == outcome(tmp_path / 'whole' / part)


def test_groups_have_their_rates_in_the_log_and_resume(interrupt, tmp_path):
  recipe = recipes.with_rates(recipes.adam(1e-2, accumulate=2), 1e-2, {'head': 1e-1})
  experiment = tiny_experiment(training=TRAINING._replace(recipe=recipe))
  run(experiment, tmp_path / 'whole', silent())
  interrupt(5)
  with pytest.raises(Stopped):
    run(experiment, tmp_path / 'parts', silent())
  interrupt(None)
  run(experiment, tmp_path / 'parts', silent())
  assert outcome(tmp_path / 'parts') == outcome(tmp_path / 'whole')
  rows = map(json.loads, (tmp_path / 'whole/metrics.jsonl').read_text().splitlines())
  rows = [row for row in rows if row['kind'] == 'train']
  assert rows
  for row in rows:
    assert row['learning_rates'] == {'head': pytest.approx(10 * row['learning_rate'])}


def test_another_configuration_is_refused(tmp_path):
  run(tiny_experiment(), tmp_path, silent(config={'rate': 1}))
  with pytest.raises(ValueError, match=r'settings\.rate: there 1, here 2'):
    run(tiny_experiment(), tmp_path, silent(config={'rate': 2}))
  training = TRAINING._replace(batch_size=6)
  with pytest.raises(ValueError, match=r'training\.batch_size: there 4, here 6'):
    run(tiny_experiment(training=training), tmp_path, silent(config={'rate': 1}))
  model = tiny_experiment().model
  model = model._replace(params=jax.tree.map(lambda a: a + 1, model.params))
  with pytest.raises(ValueError, match=r'identity\.backbone_sha256'):
    run(tiny_experiment(model=model), tmp_path, silent(config={'rate': 1}))


def test_a_state_of_another_shape_is_refused(interrupt, tmp_path):
  interrupt(8)
  with pytest.raises(Stopped):
    run(tiny_experiment('ranpac'), tmp_path, silent())
  wider = ranpac(tiny_backbone(), Capacity(2, 4), peft=lora('attn/q$', rank=2), projection=18)
  interrupt(None)
  with pytest.raises(ValueError, match=r'config\.json\.method\.projection: there 16, here 18'):
    run(tiny_experiment().replace(method=wider), tmp_path, silent())
  run(tiny_experiment('ranpac'), tmp_path, silent())  # Nothing was lost.
