"""Names to objects, for command lines and experiment files: methods, wrappers, transforms, heads.

Inside the library objects are passed, never names; this is the one place where a name becomes an
object. A name is one of a listing (`pecft list methods`), or `package.module:name` of anything that
can be imported.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pecft_jax.about import About
from pecft_jax.assignments import assign, options_of
from pecft_jax.continual import METHODS, WRAPPERS
from pecft_jax.heads import HEADS
from pecft_jax.local import local_path
from pecft_jax.paths import unknown
from pecft_jax.peft import PEFTS
from pecft_jax.settings import defaults_of
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, PeftTransform

Factory = Callable[..., Any]

REGISTRIES: Mapping[str, Mapping[str, Factory]] = {
  'method': METHODS,
  'wrapper': WRAPPERS,
  'transform': PEFTS,
  'head': HEADS,
}
_FLAGS = {'method': '--method', 'wrapper': '--wrap', 'transform': '--peft', 'head': '--head'}

# The methods that others are compared with, from below to above.
BOUNDS = ('finetune', 'masked_finetune', 'masked_probe', 'joint')

# A flag that may be given several times: `--set ewc.strength=10 --set lora.rank=4`.
Repeated = Annotated[tuple[str, ...], 'repeated']


def find(kind: str, name: str) -> Factory:
  """A factory by name.

  Args:
    kind: `method`, `wrapper`, `transform` or `head`.
    name: of a listing, or `package.module:name`.

  Raises:
    ValueError: for a name that is unknown, cannot be imported, or is one of another kind.

  >>> find('wrapper', 'ewc').__name__
  'ewc'
  """
  if ':' in name:
    factory = _imported(name)
    about = getattr(factory, 'about', None)
    if isinstance(about, About) and about.kind != kind:
      raise ValueError(f'{name} is a {about.kind}: give it as {_FLAGS[about.kind]} {name}')
    return factory
  registry = REGISTRIES[kind]
  if name in registry:
    return registry[name]
  for other, names in REGISTRIES.items():
    if name in names:
      raise ValueError(
        f'{name!r} is a {other}, not a {kind}: give it as {_FLAGS[other]} {name}; '
        f'{kind}s: {sorted(registry)}'
      )
  raise unknown(kind, name, registry)


def _imported(name: str) -> Factory:
  path, _, attribute = name.partition(':')
  if not path or path.startswith('.'):
    raise ValueError(f'expected package.module:name, got {name!r}')
  try:
    module = importlib.import_module(path)
  except ModuleNotFoundError as error:
    # A module that exists but imports a missing one raises its own error.
    if error.name is None or not f'{path}.'.startswith(f'{error.name}.'):
      raise ValueError(f'{path} cannot be imported: {error}') from error
    raise ValueError(
      f'no module {path!r} for {name!r}: it is searched in the folder of the experiment file, the '
      'current folder, and among installed packages'
    ) from error
  except SyntaxError as error:
    raise ValueError(f'{error.filename}, line {error.lineno}: {error.msg}') from error
  factory = getattr(module, attribute, None)
  if not callable(factory):
    choices = [k for k, v in vars(module).items() if callable(v) and not k.startswith('_')]
    raise unknown(f'name in {path}', attribute, choices)
  return factory


class Choice(NamedTuple):
  """Parts that were chosen by name, and their options.

  Attributes:
    method: its name.
    peft: name of the transform, or the directory of an adapter of huggingface/peft, which training
      starts from; the method's own where it is None.
    wrap: names of wrappers, the first innermost.
    options: arguments by the name of a part; those of parts that are not used are ignored.
    head: name of the head; the method's own where it is None.
  """

  method: str
  peft: str | None = None
  wrap: tuple[str, ...] = ()
  options: Mapping[str, Mapping[str, Any]] = {}
  head: str | None = None

  def build(self, backbone: Backbone, capacity: Capacity) -> ContinualMethod:
    """The method on a backbone, with its wrappers.

    Raises:
      ValueError: for parts that do not go together.
    """
    factory = find('method', self.method)
    parts: dict[str, Any] = {}
    if self.peft is not None:
      _check_takes_peft(factory, self.method, self.peft)
    if self.peft is not None and _is_adapter(self.peft):
      parts['peft'] = _started_from(self.peft, backbone)
    if self.head is not None:
      _check_takes_head(factory, self.method, self.head)
      parts['head'] = find('head', self.head)(**self.options.get(self.head, {}))
    trained = self.transform
    # The method's own stays None, unless it has options.
    if 'peft' not in parts and trained and (self.peft is not None or self.options.get(trained)):
      parts['peft'] = find('transform', trained)(**self.options.get(trained, {}))
    arguments = {**parts, **self.options.get(self.method, {})}
    method = _called('method', self.method, factory, (backbone, capacity), arguments)
    for name in self.wrap:
      options = self.options.get(name, {})
      method = _called('wrapper', name, find('wrapper', name), (method,), options)
    return method

  def plain(self, method: str) -> 'Choice':
    """Another method with the same parts and no wrappers, as the bounds of a report are."""
    peft = self.peft if 'peft' in inspect.signature(find('method', method)).parameters else None
    return Choice(method, peft, (), self.options, self.head)

  def references(
    self, backbone: Backbone, capacity: Capacity, *, bounds: bool = False, single_task: bool = False
  ) -> dict[str, ContinualMethod]:
    """Methods to run beside this one, by name, with the same transform: for `Experiment`.

    Args:
      backbone: as in `build`.
      capacity: as in `build`.
      bounds: those of `BOUNDS`: sequential fine-tuning with plain and with masked softmax, the
        masked linear probe, and joint training.
      single_task: training on each task by itself, for forward transfer.

    Raises:
      ValueError: as `build`.
    """
    wanted = references_named(bounds=bounds, single_task=single_task)
    return {
      name: self.plain(name).build(backbone, capacity) for name in wanted if name != self.method
    }

  @property
  def transform(self) -> str | None:
    """The name of the transform in use; None where the method has none."""
    return own_transform(find('method', self.method)) if self.peft is None else self.peft


def references_named(*, bounds: bool = False, single_task: bool = False) -> tuple[str, ...]:
  """The methods that `Choice.references` builds, for `choose(beside=...)`.

  >>> references_named(bounds=True)
  ('finetune', 'masked_finetune', 'masked_probe', 'joint')
  """
  return (*(BOUNDS if bounds else ()), *(('single_task',) if single_task else ()))


def choose(
  method: str,
  *,
  peft: str | None = None,
  head: str | None = None,
  wrap: str | Sequence[str] = (),
  set: Sequence[str] = (),
  options: Mapping[str, Mapping[str, Any]] | None = None,
  beside: Sequence[str] = (),
) -> Choice:
  """Reads and checks the flags of a method and its parts, for the `experiment` function of a file.

  Args:
    method: of `METHODS`, or `package.module:name`, as all names.
    peft: of `PEFTS`, or a directory as in `Choice`; the method's own default where None.
    head: of `HEADS`; the method's own default where None.
    wrap: of `WRAPPERS`, the first innermost; `'ewc,derpp'` or a sequence.
    set: options as `NAME.option=value`, of parts that are in use.
    options: arguments by the name of a part; `set` overrides them.
    beside: names of methods that run as references, whose options may be set, too, as in
      `joint.epochs=20`.

  Raises:
    ValueError: for an unknown name or option, a value of another type, a wrapper that is named
      twice, or an option of a part that is not in use.

  >>> choice = choose('finetune', wrap='ewc', set=['ewc.strength=10', 'lora.rank=2'])
  >>> choice.options
  {'ewc': {'strength': 10.0}, 'lora': {'rank': 2}}
  """
  names = wrap.split(',') if isinstance(wrap, str) else wrap
  wrappers = tuple(name.strip() for name in names) if wrap else ()
  for name in wrappers:
    if wrappers.count(name) > 1:
      raise ValueError(
        f'wrapper {name!r} is named twice: once is all it can do, and options go by its name'
      )
  options = {name: dict(values) for name, values in (options or {}).items()}
  _check_options(options)
  choice = Choice(method, peft, wrappers, options, head)
  parts = {name: find('method', name) for name in (*beside, method)}
  parts |= {name: find('wrapper', name) for name in wrappers}
  if peft is not None:
    _check_takes_peft(parts[method], method, peft)
  if head is not None:
    _check_takes_head(parts[method], method, head)
    parts[head] = find('head', head)
  if choice.transform is not None and not _is_adapter(peft):
    parts[choice.transform] = find('transform', choice.transform)
  known = [name for registry in REGISTRIES.values() for name in registry]
  for name, values in assign(set, parts, known).items():
    options[name] = {**options.get(name, {}), **values}
  return choice


def _called(
  kind: str, name: str, factory: Factory, parts: tuple[Any, ...], options: Mapping[str, Any]
) -> ContinualMethod:
  """What a factory returns for its parts. Raises ValueError unless that is a method."""
  try:
    inspect.signature(factory).bind(*parts, **options)
  except (TypeError, ValueError) as error:
    first = 'backbone, capacity' if kind == 'method' else 'inner'
    raise ValueError(
      f'{name} cannot be called as a {kind}, {name}({first}, ...): {error}'
    ) from None
  found = factory(*parts, **options)
  if not isinstance(found, ContinualMethod):
    raise ValueError(
      f'{name} is given as a {kind}: expected it to make a ContinualMethod, got '
      f'{type(found).__name__}'
    )
  return found


def _check_options(options: Mapping[str, Mapping[str, Any]]) -> None:
  """Raises ValueError for options of no part, or that its factory does not take."""
  known = {name: part for registry in REGISTRIES.values() for name, part in registry.items()}
  for name, values in options.items():
    if ':' in name:
      continue  # Of another module, which is imported when it is in use.
    if name not in known:
      raise unknown('part in options', name, known)
    for option in values:
      if option not in (accepted := options_of(known[name])):
        raise unknown(f'option of {name}', option, accepted)


def _is_adapter(name: str | None) -> bool:
  """Whether a name is that of a directory with an adapter of huggingface/peft."""
  if not name or name in PEFTS or ':' in name:
    return False
  return (local_path(name) / 'adapter_config.json').is_file()


def _started_from(directory: str, backbone: Backbone) -> PeftTransform:
  from pecft_jax.interop import load_hf_peft
  from pecft_jax.peft import starting_from

  found = load_hf_peft(directory, backbone)
  return starting_from(found.delta, found.peft)


def own_transform(method: Factory) -> str | None:
  """The name of the transform that a method trains by default.

  None if the method trains no transform, or one with options of the method's own (InfLoRA).

  >>> from pecft_jax.continual import ease, l2p
  >>> own_transform(ease), own_transform(l2p)
  ('adaptformer', None)
  """
  factory = defaults_of(method).get('peft')
  found = getattr(factory, 'about', None)
  return found.name if isinstance(found, About) else None


def _check_takes_peft(factory: Factory, method: str, peft: str) -> None:
  if 'peft' not in inspect.signature(factory).parameters:
    raise ValueError(f'{method} trains nothing of the backbone: it takes no PEFT, got {peft!r}')


def _check_takes_head(factory: Factory, method: str, head: str) -> None:
  if 'head' not in defaults_of(factory):
    raise ValueError(f'{method} has no head that can be chosen, got {head!r}')


def peft_by_name(name: str, **options: Any) -> PeftTransform:
  """A transform with its defaults, except for the options given.

  Raises:
    ValueError: for an unknown name; suggests the nearest.

  >>> peft_by_name('lora', rank=4).settings['rank']
  4
  """
  return find('transform', name)(**options)


def method_by_name(
  name: str,
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: str | None = None,
  wrap: Sequence[str] = (),
  options: Mapping[str, Mapping[str, Any]] | None = None,
) -> ContinualMethod:
  """A method on a backbone, with wrappers around it: `choose(...).build(backbone, capacity)`.

  Args and errors are those of `choose` and `Choice.build`.

  >>> from pecft_jax.backbones import vit
  >>> small = vit(image_size=8, patch=4, width=8, depth=1, heads=2, mean=(0.5,) * 3, std=(0.5,) * 3)
  >>> method_by_name('finetune', small, Capacity(2, 4), peft='ia3', wrap=['ewc']).name
  'ewc(finetune)'
  """
  return choose(name, peft=peft, wrap=wrap, options=options).build(backbone, capacity)
