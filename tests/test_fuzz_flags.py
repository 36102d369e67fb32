"""Odd values of flags: the experiment that is run has them, or the error names the flag.

`--fuzz N` tries N command lines of each kind, others each time. A run is followed up to its first
step: all is built and checked, the work directory is claimed, and the state is made as shapes.
"""

import contextlib
import io
import json
import math
import pathlib
import re
import shutil

import flags_file
import jax
import pytest
from fuzzing import fuzzed, in_time
from hypothesis import given
from hypothesis import strategies as st

from pecft_jax import cli
from pecft_jax import plan as plans
from pecft_jax.assignments import options_of
from pecft_jax.catalog import BOUNDS, REGISTRIES
from pecft_jax.presets import presets
from pecft_jax.settings import defaults_of, recorded_name
from pecft_jax.train import running
from pecft_jax.train.step import compile_steps

FILE = flags_file.__file__
ODD = st.one_of(
  st.sampled_from(['1', '2', '0', '-1', '1.0', '1e3', 'nan', 'inf', '', ' ', '0x10', '1_0']),
  st.sampled_from(['--', '-h=', '--help=1', '--bounds', '--no-bounds', '--nothing', '-x', '1e39']),
  st.sampled_from(['None', 'none', 'true', 'False', '()', '[1]', '{[]:1}', '(' * 300, '9' * 5000]),
  st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=5),
)


class Reached(BaseException):
  """The first step of a run would be next."""

  def __init__(self, job):
    super().__init__()
    self.job = job


def _reach(job):
  """What a run does before its first step, as shapes."""
  recipe, frozen = job.experiment.training.recipe, job.experiment.frozen
  steps = compile_steps(
    job.method,
    recipe,
    job.layout,
    frozen,
    stacked=job.stacked,
    restart=job.experiment.training.restart,
  )
  keys = jax.random.split(jax.random.key(0), len(job.experiments))
  jax.eval_shape(steps.init, keys if job.stacked else keys[0], frozen)
  raise Reached(job)


@pytest.fixture(autouse=True)
def before_the_first_step(monkeypatch):
  monkeypatch.setattr(running, 'run_job', _reach)
  monkeypatch.setenv('COLUMNS', '10000')


def commanded(*args):
  """The job that a command would start, or its exit status; and what it printed."""
  said = io.StringIO()
  with in_time(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    try:
      return cli.main(list(args)), said.getvalue()
    except Reached as reached:
      return reached.job, said.getvalue()
    except SystemExit as stop:
      return stop.code, said.getvalue()


def check_refused(status, text, args, *names):
  """That a command ended with an error of its own that has one of the names."""
  assert status in (1, 2), (status, args)
  assert 'Traceback' not in text, text
  told = re.sub(r'[-_]', '-', text)
  names = [*names, *(str(pathlib.PurePath(name)) for name in names)]  # `run/.` is `run`.
  assert any(re.sub(r'[-_]', '-', name) in told for name in names), (args, text)
  # Another exception, from a line of the experiment file, would be a fault of the library's.
  assert not re.search(r'error: (?!OSError|NotADir)\w+(Error|Exception)\b', text), text


def nested(settings, name):
  """The settings of the part of a name, wherever it is in those of a method."""
  if isinstance(settings, dict):
    if settings.get('name') == name:
      return settings
    found = [nested(value, name) for value in settings.values()]
    return next((each for each in found if each is not None), None)
  return None


def same(found, text):
  """Whether a recorded setting is what a text says."""
  words = {'true': True, 'false': False, 'none': None}
  if isinstance(found, list):
    found = tuple(found)
  if isinstance(found, bool) or found is None:
    return words.get(text.strip().lower(), text) is found
  if isinstance(found, int | float):
    return float(text) == found
  if isinstance(found, str):
    return found == text.strip()
  parts = [each.strip() for each in text.strip().strip('()[]').split(',') if each.strip()]
  return len(parts) == len(found) and all(map(same, found, parts))


# Where an experiment, or what runs it, has the value of a flag.
VALUES = {
  '--epochs': (int, lambda job: job.experiment.training.epochs),
  '--batch-size': (int, lambda job: job.experiment.training.batch_size),
  '--eval-batch-size': (int, lambda job: job.experiment.training.eval_batch_size),
  '--evaluate-every': (int, lambda job: job.experiment.training.evaluate_every),
  '--evaluate': (str, lambda job: job.experiment.training.evaluate),
  '--learning-rate': (float, lambda job: job.experiment.training.recipe.settings['learning_rate']),
  '--accumulate': (int, lambda job: job.experiment.training.recipe.settings['accumulate']),
  '--tasks': (int, lambda job: len(job.experiment.scenario.tasks)),
  '--seed': (int, lambda job: job.experiment.seed),
  '--seeds': (int, lambda job: len(job.experiments)),
  '--save-every': (float, lambda job: job.options.save_every),
  '--method': (str, lambda job: _names(job)[-1]),
  '--peft': (lambda name: recorded_name(REGISTRIES['transform'][name]),
             lambda job: _transform(job)['name']),  # The factory's name, which may be another.
}  # fmt: skip
OPTIONAL = {'--evaluate-every', '--learning-rate', '--peft'}


def _names(job):
  """Names of wrappers and of the method, the outermost first."""
  at, names = job.experiment.method.settings, []
  while at is not None:
    names.append(at['name'])
    at = at.get('inner')
  return names


def _transform(job):
  """Settings of the transform, below all wrappers."""
  at = job.experiment.method.settings
  while at.get('inner') is not None:
    at = at['inner']
  return at['peft']


METHODS = sorted({*REGISTRIES['method']} - {'language_model'})
USUAL = {
  '--method': st.sampled_from([*METHODS, 'ewc', 'l2', 'os:getcwd', 'os', ':', '.:x', 'a..b:c']),
  '--peft': st.sampled_from([*REGISTRIES['transform'], 'None', 'l2p', 'os:getcwd']),
  '--evaluate': st.sampled_from(['seen', 'all', 'al', 'Seen']),
}
NUMBERS = st.one_of(
  st.integers(-3, 40).map(str), st.floats().map(repr), st.integers(-(2**65), 2**65).map(str)
)


@st.composite
def valued(draw):
  """A flag with one value, and the value."""
  flag = draw(st.sampled_from(list(VALUES)))
  usual = USUAL.get(flag, NUMBERS)
  return flag, draw(st.one_of(usual, usual, ODD))


@fuzzed(40)
@given(flags=st.lists(valued(), min_size=1, max_size=2, unique_by=lambda pair: pair[0]))
def test_a_run_has_the_values_of_its_flags(flags, tmp_path):
  shutil.rmtree(tmp_path / 'run', ignore_errors=True)
  args = [word for pair in flags for word in pair]
  job, text = commanded('run', FILE, '--workdir', str(tmp_path / 'run'), *args)
  if isinstance(job, int):
    values = [value for _, value in flags if value.strip()]
    check_refused(job, text, args, *(flag[2:] for flag, _ in flags), *map(repr, values))
    return
  for flag, value in flags:
    kind, found = VALUES[flag]
    if flag in OPTIONAL and value == 'None':
      continue
    assert found(job) == kind(value), (flag, value)
    assert not isinstance(found(job), float) or math.isfinite(found(job)), (flag, value)


KINDS = {'--method': 'method', '--wrap': 'wrapper', '--peft': 'transform'}


@st.composite
def options(draw):
  """`NAME.option=value` of a part that is in use, mostly, with the flags that put it to use."""
  flag = draw(st.sampled_from(list(KINDS)))
  known = REGISTRIES[KINDS[flag]]
  name = draw(st.sampled_from(sorted({*known} - {'language_model'})))
  option = draw(st.sampled_from([*options_of(known[name]), 'nothing']))
  words = st.sampled_from(
    ['attn/q$', 'mlp', '(', '[a', '*', 'attn', 'xx', '1,2', '0.5,2', 'linear']
  )
  value = draw(st.one_of(NUMBERS, words, ODD))
  return flag, name, option, value


@fuzzed(50)
@given(drawn=options())
def test_a_run_has_the_options_that_are_set(drawn, tmp_path):
  flag, name, option, value = drawn
  shutil.rmtree(tmp_path / 'run', ignore_errors=True)
  args = [flag, name, '--set', f'{name}.{option}={value}']
  job, text = commanded('run', FILE, '--workdir', str(tmp_path / 'run'), *args)
  if isinstance(job, int):
    check_refused(
      job,
      text,
      args,
      f'{name}.{option}',
      option,
      value.strip() or option,
      repr(value.strip()),
      f'{name}(',
      'above both sides of its weight',  # As some ranks are by default, on a model so small.
    )
    return
  factory = REGISTRIES[KINDS[flag]][name]
  if value.strip().lower() == 'none' and option in defaults_of(factory):
    return  # None is the default there, which is recorded.
  found = nested(job.experiment.method.settings, recorded_name(factory))
  assert found is not None and same(found[option], value), (args, found)


AXES = st.sampled_from(['data', 'model', 'seed', ' data ', '', '=', 'x'])
MESHES = st.lists(
  st.tuples(AXES, st.sampled_from(['1', '01', ' 1 ', '0', '2', '', '-1', '1.0', '²', '9' * 30])),
  min_size=1,
  max_size=3,
).map(lambda axes: ','.join('='.join(pair) for pair in axes))
WRAPS = st.lists(
  st.sampled_from([*REGISTRIES['wrapper'], ' ewc', 'EWC', '', 'finetune', 'lora', 'os:getcwd']),
  max_size=3,
).map(','.join)
RULES = st.sampled_from(
  ['head/kernel$=-,-', 'gram$=', '=', 'x', '(=data', '^=data', 'kernel=data,...', 'q=...,...']
)
PRESETS = sorted(presets())
WHERE = {
  '--mesh': st.one_of(MESHES, MESHES, ODD),
  '--wrap': st.one_of(WRAPS, WRAPS, ODD),
  '--rules': st.one_of(RULES, RULES, ODD),
  '--preset': st.one_of(st.sampled_from([*PRESETS, 'l2p', 'l2p@', '@pilot']), ODD),
  '--views': st.sampled_from(['own', 'source', 'None', '']),
  '--fsdp': st.none(),
  '--keep-tasks': st.none(),
  '--accept-changes': st.none(),
  '--bounds': st.none(),
}


@st.composite
def placed(draw):
  """A flag of where and with what a run is made; one that takes no value has None."""
  flag = draw(st.sampled_from(list(WHERE)))
  return flag, draw(WHERE[flag])


@fuzzed(30)
@given(flags=st.lists(placed(), min_size=1, max_size=3, unique_by=lambda pair: pair[0]))
def test_a_run_has_the_mesh_the_wrappers_and_the_preset_of_its_flags(flags, tmp_path):
  shutil.rmtree(tmp_path / 'run', ignore_errors=True)
  args = [word for pair in flags for word in pair if word is not None]
  args += ['--batch-size', '4'] if '--preset' in args else []
  job, text = commanded('run', FILE, '--workdir', str(tmp_path / 'run'), *args)
  if isinstance(job, int):
    values = [value.strip() for _, value in flags if value and value.strip()]
    # What a preset says of other flags may not fit the task.
    others = ('epochs', 'augment', 'blocks') if '--preset' in dict(flags) else ()
    check_refused(job, text, args, *(flag[2:].rstrip('s') for flag, _ in flags), *values, *others)
    return
  given_flags = dict(flags)
  if given_flags.get('--mesh'):
    axes = [part.partition('=')[::2] for part in given_flags['--mesh'].split(',')]
    sizes = {axis.strip(): int(size) for axis, size in axes}
    assert len(sizes) == len(axes) and dict(job.layout.mesh.shape) == sizes
  if '--rules' in given_flags:
    assert '--mesh' in given_flags  # Without one they would do nothing.
    assert job.layout.rules[0].pattern == given_flags['--rules'].rpartition('=')[0]
  if '--fsdp' in given_flags:
    assert given_flags.get('--mesh')
  if '--wrap' in given_flags:
    names = [name.strip() for name in given_flags['--wrap'].split(',')]
    assert _names(job)[:-1][::-1] == (names if given_flags['--wrap'] else [])
  named = given_flags.get('--preset', 'None')
  if named != 'None':
    published = presets()[named]
    assert job.experiment.training.epochs == published.epochs
    assert _names(job)[-1] == published.method
  else:
    assert given_flags.get('--views') != 'source'
  assert job.options.keep_tasks == ('--keep-tasks' in given_flags)
  assert job.options.accept_changes == ('--accept-changes' in given_flags)
  bounds = set(BOUNDS) if '--bounds' in given_flags else set()
  assert {*job.experiment.references} <= bounds


# --- commands on work directories


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A work directory of `pecft run` with two tasks that are done."""
  at = tmp_path_factory.mktemp('work') / 'run'
  command = ['run', FILE, '--workdir', str(at), '--epochs', '1', '--keep-tasks']
  with contextlib.redirect_stdout(io.StringIO()):
    assert cli.main(command) == 0
  return at


PLACES = ['RUN', 'RUN', 'RUN', 'RUN/', 'RUN/.', 'RUN/../run', 'EMPTY', 'absent', '', '~', '-x']
PLACES += ['RUN/config.json', 'a[b]', 'gs://b/c', 'file:/x', 'ä ö', 'a\\b', 'RUN\n', '\ufffd' * 300]
PLACE = st.one_of(st.sampled_from(PLACES), ODD)


@st.composite
def command(draw):
  """A command on directories, and its flags."""
  name = draw(st.sampled_from(['list', 'report', 'inspect', 'export', 'run', 'plan']))
  number = st.one_of(st.integers(-2, 4).map(str), ODD)
  switch = lambda *flags: [flag for flag in flags if draw(st.integers(0, 3)) == 0]
  match name:
    case 'list':
      kinds = ['methods', 'peft', 'presets', 'benchmarks', 'backbones', 'method']
      return [name, draw(st.one_of(st.sampled_from(kinds), ODD)), *switch('--json', '--verify')]
    case 'report':
      dirs = draw(st.lists(PLACE, min_size=1, max_size=2))
      out = ['--out', draw(PLACE)] if draw(st.booleans()) else []
      return [name, *dirs, *out, *switch('--markdown', '--json')]
    case 'inspect':
      return [name, draw(PLACE), *switch('--verify', '--leaves', '--json', '--out')]
    case 'export':
      flag = draw(st.sampled_from(['--task', '--seed', '--format', '--file']))
      return [name, draw(PLACE), 'OUT', flag, draw(number), *switch('--accept-changes')]
    case 'run':
      flags = ['--branch', draw(PLACE), '--after-task', draw(number)]
      return [name, FILE, '--workdir', 'NEW', '--epochs', '1', *flags]
    case _:
      flag = draw(st.sampled_from(['--mesh', '--chip', '--frozen-dtype', '--utilisation']))
      return [name, FILE, flag, draw(st.one_of(MESHES, NUMBERS, ODD)), *switch('--fsdp')]


@fuzzed(40)
@given(args=command())
def test_a_command_does_what_it_says_or_names_what_is_wrong(args, finished, tmp_path, monkeypatch):
  monkeypatch.setattr(plans, 'plan_experiment', _plan)
  monkeypatch.setenv('HOME', str(tmp_path))
  shutil.rmtree(tmp_path / 'here', ignore_errors=True)
  here = tmp_path / 'here'
  (here / 'empty').mkdir(parents=True)
  shutil.copytree(finished, here / 'run')
  monkeypatch.chdir(here)
  there = {'RUN': 'run', 'EMPTY': 'empty', 'OUT': 'out', 'NEW': 'new'}
  args = [re.sub('^(RUN|EMPTY|OUT|NEW)', lambda found: there[found[0]], word) for word in args]
  before = {path.name for path in here.iterdir()}
  done, text = commanded(*args)
  if done == 0:
    assert args[0] in ('list', 'report', 'inspect', 'export')
    if args[0] == 'list' and '--json' in args:
      assert json.loads(text)
    if args[0] == 'export':
      assert (here / 'out' / 'adapter_config.json').is_file()
      tasks = args[args.index('--task') + 1] if '--task' in args else '2'
      assert 'after task 1 ' in text if int(tasks) == 1 else 'after tasks 1 to 2 ' in text
    if args[0] == 'inspect':
      assert (here / args[1]).resolve() == here / 'run'
    return
  if isinstance(done, int):
    words = [word for word in args[1:] if word]
    shown = ["''", 'is empty', *words, *map(repr, words), *(repr(word)[1:-1] for word in words)]
    check_refused(
      done,
      text,
      args,
      *shown,
      *(word.strip('-') for word in words),
      'arguments are required',
      '--help',
    )
    assert args[0] in ('inspect', 'run') or {path.name for path in here.iterdir()} == before, args
    return
  if args[0] == 'plan':
    layout, flag, value = done, args[2], args[3]
    axes = [part.partition('=')[::2] for part in value.split(',')] if flag == '--mesh' else []
    sizes = {axis.strip(): int(size) for axis, size in axes if value}
    assert dict(layout.mesh.shape) == (sizes or {'data': 1}), args
    return
  assert done.options.branch.after_task == int(args[-1]), args
  assert (here / args[args.index('--branch') + 1]).resolve() == here / 'run', args


def _plan(experiment, layout, dtype):
  raise Reached(layout)
