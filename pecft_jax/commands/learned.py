"""What was learned, for commands that use it: from a bundle or a work directory."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pecft_jax.commands.failures import quiet_libraries
from pecft_jax.devices.compile_cache import use_compile_cache
from pecft_jax.environment import now
from pecft_jax.learners import Learner, NotRemade, is_bundle, load_bundle, load_run
from pecft_jax.learners.bundle import DESCRIPTION
from pecft_jax.learners.from_settings import made_from
from pecft_jax.learners.parts import weights_from
from pecft_jax.local import local_path
from pecft_jax.typing import Backbone, Pretrained


@dataclasses.dataclass(frozen=True)
class Which:
  """The learner that a command is about, and where its parts are."""

  directory: pathlib.Path  # A work directory, or a bundle.
  after_task: int | None = None  # None is the last task with a checkpoint.
  seed: int | None = None  # Of seeds side by side.
  weights: pathlib.Path | None = None  # Of the backbone; None reads what was recorded.
  file: str | None = None  # The experiment; None makes it only where settings are incomplete.
  accept_changes: bool = False  # Of the experiment file.


def learner_of(which: Which) -> Learner:
  """The learner of a directory.

  It is made from what was recorded. Where that is incomplete, as for a method or a backbone of the
  user's own, the experiment is made again by the command that the run recorded. A bundle may come
  from anywhere, so no file that it names is run: `--file` must name it.

  Raises:
    ValueError: if the directory holds no such learner, or parts of it are missing, or have changed;
      says which flag names them.
  """
  which = dataclasses.replace(which, directory=local_path(which.directory).resolve())
  bundle = is_bundle(which.directory)
  stored = (_bundle if bundle else _work_directory)(which)
  use_compile_cache()
  with quiet_libraries():
    if which.file is not None:
      return _by_experiment(stored, which, '')
    try:
      backbone = lambda: made_from(stored.method).backbone
      return stored.load(model=_weights(stored, which, backbone))
    except NotRemade as error:
      if bundle:
        raise NotRemade(f'{error}; --file names the experiment that has the rest') from error
      return _by_experiment(stored, which, f'{error}; ')


class _Stored(NamedTuple):
  """A learner on the disk."""

  path: pathlib.Path  # The file that describes it.
  method: Mapping[str, Any]  # Settings of the method.
  config: Mapping[str, Any]  # What the run recorded.
  load: Callable[..., Learner]  # (*, model, method=None) -> learner


def _work_directory(which: Which) -> _Stored:
  from pecft_jax.workdir.claim import read_config

  config, path = read_config(which.directory), which.directory / 'config.json'
  if not isinstance(config.get('method'), dict):
    raise ValueError(f'{path} has no settings of a method: it is of another version')

  def load(**parts: Any) -> Learner:
    return load_run(which.directory, which.after_task, seed=which.seed, **parts)

  return _Stored(path, config['method'], config, load)


def _bundle(which: Which) -> _Stored:
  from pecft_jax.files import read_object

  for flag, value in (('--after-task', which.after_task), ('--seed', which.seed)):
    if value is not None:
      raise ValueError(
        f'{which.directory} is a bundle, which holds one learner after its last task: leave out '
        f'{flag} {value}'
      )
  path = which.directory / DESCRIPTION
  found = read_object(path, 'the description of a bundle')

  def load(**parts: Any) -> Learner:
    return load_bundle(which.directory, **parts)

  return _Stored(path, found.get('method') or {}, found.get('facts') or {}, load)


def _weights(stored: _Stored, which: Which, backbone: Callable[[], Backbone]) -> Pretrained | None:
  """The weights that a flag names, for a backbone."""
  if which.weights is None:
    return None
  file = local_path(which.weights).resolve()
  if not file.is_file():
    raise FileNotFoundError(f'no file {file}')
  return weights_from(stored.path, {'file': str(file)}, backbone())


def _by_experiment(stored: _Stored, which: Which, why: str) -> Learner:
  """The learner with the model and the method of the experiment that was run.

  Args:
    stored: the learner on the disk.
    which: names the experiment file, if it has moved.
    why: what was recorded is not enough, for messages; ends in a semicolon.
  """
  from pecft_jax.commands.files import find_experiment, load_experiment, made, parse_flags
  from pecft_jax.commands.run import RunFlags
  from pecft_jax.sources import files_beside
  from pecft_jax.workdir.claim import changed_files, files_message

  command = stored.config.get('command') or {}
  file = command.get('file') if which.file is None else _found(find_experiment(which.file))
  if file is None or 'arguments' not in command:
    raise ValueError(
      f'{why}{stored.path} does not record the command that made it, as pecft run does. --weights '
      'names the file of the weights; the rest is given in code, to load_run or load_bundle'
    )
  if not pathlib.Path(file).is_file():
    raise ValueError(
      f'{why}there is no experiment file at {file}, which would make the rest: --file names it'
    )
  # Flags may hold paths relative to the directory of the original command.
  there = pathlib.Path(command['directory'])
  with contextlib.chdir(there) if there.is_dir() else contextlib.nullcontext():
    function = load_experiment(file)
    changed = changed_files(stored.config.get('files') or {}, files_beside(file))
    if changed and not which.accept_changes:
      raise ValueError(
        f'{why}{files_message(changed)}: running it now may make another experiment than '
        f'{which.directory} holds; --accept-changes if what was changed has no part in what is '
        'computed'
      )
    values, _ = parse_flags(function, command['arguments'], f'pecft run {file}', RunFlags)
    experiment = made(function, values)
  weights = _weights(stored, which, lambda: experiment.backbone)
  model = experiment.model if weights is None else weights
  learner = stored.load(model=model, method=experiment.method)
  if not changed:
    return learner
  accepted = [*(learner.facts.get('accepted') or []), {'date': now(), 'files': changed}]
  return dataclasses.replace(learner, facts={**learner.facts, 'accepted': accepted})


def _found(file: str) -> str:
  return str(local_path(file).resolve())
