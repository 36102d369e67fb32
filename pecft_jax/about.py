"""Facts about a method, a wrapper, a transform or a head: its sources, needs and costs.

`about` stands above each factory. Listings, the tables of README.md, names on the command line and
the common tests are made from it, so a new factory is one file and one line in its facade.
"""

import dataclasses
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from pecft_jax.paths import unknown

F = TypeVar('F', bound=Callable[..., Any])

KINDS = ('method', 'wrapper', 'transform', 'head')

# What a factory may need from the parts that it is combined with, or from a run.
NEEDS: Mapping[str, str] = {
  'adapters': 'a transform whose delta is a bottleneck adapter at every site',
  'attention': 'a backbone whose blocks have attention',
  'biases': 'linear layers with biases',
  'classes': 'a classification problem',
  'class token': 'a backbone that puts a class token before the sequence',
  'common places': 'a transform that trains the same places for each task, not those of its data',
  'LoRA factors': 'a transform whose delta is LoRA factors at every site',
  'past data': 'all data of past tasks',
  'stored examples': 'some examples of past tasks, stored',
  'task identity': 'the task of each test example, or a forward pass for each task',
  'texts': 'a backbone that reads texts, and tokens as targets',
  'trained delta': 'a transform that trains something of the backbone',
}


class Paper(NamedTuple):
  """A publication."""

  title: str
  arxiv: str  # As in '2106.09685'.


class Switch(NamedTuple):
  """An option that brings back what a published code does and should not.

  Its default is the correct form.
  """

  option: str  # Of the factory.
  published: Any  # Its value in that code.
  what: str  # What the code does then, in a sentence without a full stop.
  where: str  # Repositories.


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
  """Facts about one factory.

  Attributes:
    kind: of `KINDS`.
    name: on the command line and in listings.
    family: the idea that it shares with others; the name of its folder.
    papers: the sources, first the one that introduced it.
    summary: one line, the first of the docstring.
    needs: of `NEEDS`.
    carries: what a method or wrapper carries from task to task, in words.
    passes: forward passes of the backbone for one prediction: `1`, `2`, `T` for as many as tasks
      were seen, or `T + 1`.
    tiny: by variant, what makes the small instances that the common tests run: `(backbone,
      capacity) -> method`, `(inner) -> wrapped method`, or `()` -> transform or head. The first
      is named ''. The variant `zero` of a wrapper leaves the method inside as it is.
    identity: whether a fresh delta of a transform leaves the model as it is.
    switches: options for known faults of published codes.
  """

  kind: str
  name: str
  family: str
  papers: tuple[Paper, ...]
  summary: str
  needs: tuple[str, ...]
  carries: str
  passes: str
  tiny: Mapping[str, Callable[..., Any]]
  identity: bool
  switches: tuple[Switch, ...] = ()

  def as_json(self) -> dict[str, Any]:
    """All fields except functions, for listings; those without meaning for a kind are left out."""
    facts: dict[str, Any] = {
      'summary': self.summary,
      'kind': self.kind,
      'family': self.family,
      'papers': [paper._asdict() for paper in self.papers],
      'needs': list(self.needs),
    }
    if self.kind == 'head':
      return facts
    if self.kind == 'transform':
      return {**facts, 'identity_at_init': self.identity}
    return {**facts, 'carries': self.carries, 'passes': self.passes}


def about(
  kind: str,
  family: str,
  *papers: Paper,
  tiny: Callable[..., Any] | Mapping[str, Callable[..., Any]],
  name: str | None = None,
  needs: tuple[str, ...] = (),
  carries: str = 'nothing',
  passes: str = '1',
  identity: bool = True,
  switches: tuple[Switch, ...] = (),
) -> Callable[[F], F]:
  """Attaches an `About` to a factory, as its attribute `about`.

  Args:
    kind: `method`, `wrapper`, `transform` or `head`.
    family: as `About.family`.
    *papers: the sources; none for sequential fine-tuning, for example.
    tiny: makes a small instance; several by variant, the first of which is named ''.
    name: on the command line; the factory's own by default.
    needs: of `NEEDS`.
    carries: as `About.carries`.
    passes: as `About.passes`.
    identity: as `About.identity`.
    switches: as `About.switches`.

  Raises:
    ValueError: for an unknown kind or need, a malformed arXiv id, no small
      instance, or a factory whose docstring does not begin with one sentence on one line.

  >>> @about('transform', 'low-rank', Paper('LoRA', '2106.09685'), tiny=lambda: mine(rank=1))
  ... def mine(rank=8):
  ...   '''Adds a low-rank product.'''
  >>> about_of(mine).summary, list(about_of(mine).tiny)
  ('Adds a low-rank product.', [''])
  """
  if kind not in KINDS:
    raise unknown('kind', kind, KINDS)
  for need in needs:
    if need not in NEEDS:
      raise unknown('need', need, NEEDS)
  for paper in papers:
    if not re.fullmatch(r'\d{4}\.\d{4,5}', paper.arxiv):
      raise ValueError(f"expected an arXiv id as '2106.09685', got {paper.arxiv!r}")
  variants = dict(tiny) if isinstance(tiny, Mapping) else {'': tiny}
  if '' not in variants:
    raise ValueError(f"expected a small instance named '', got {sorted(variants)}")

  def put(factory: F) -> F:
    line = (factory.__doc__ or '').strip().partition('\n')[0]
    if not line.endswith('.'):
      raise ValueError(
        f'the docstring of {factory.__name__} must begin with one sentence on a line, got {line!r}'
      )
    found = About(
      kind=kind,
      name=name or factory.__name__,
      family=family,
      papers=papers,
      summary=line,
      needs=needs,
      carries=carries,
      passes=passes,
      tiny=variants,
      identity=identity,
      switches=switches,
    )
    setattr(factory, 'about', found)  # noqa: B010  A function has no such attribute for checkers.
    return factory

  return put


def about_of(factory: Any) -> About:
  """The `About` of a factory.

  Raises:
    ValueError: if it is not decorated with `about`.

  >>> from pecft_jax.peft import lora
  >>> about_of(lora).family
  'low-rank'
  """
  found = getattr(factory, 'about', None)
  if not isinstance(found, About):
    raise ValueError(f'{getattr(factory, "__name__", factory)} is not decorated with about(...)')
  return found


def factories(namespace: Mapping[str, Any], kind: str) -> dict[str, Callable[..., Any]]:
  """The factories of one kind in a namespace, by their names in listings, sorted.

  Raises:
    ValueError: if two have one name.

  >>> from pecft_jax import continual
  >>> 'ewc' in factories(vars(continual), 'wrapper')
  True
  """
  found: dict[str, Callable[..., Any]] = {}
  for value in namespace.values():
    each = getattr(value, 'about', None)
    if not isinstance(each, About) or each.kind != kind:
      continue
    if found.setdefault(each.name, value) is not value:
      raise ValueError(f'two {kind}s are named {each.name!r}')
  return dict(sorted(found.items()))


def exported(namespace: Mapping[str, Any]) -> list[str]:
  """The public names of a facade, for its `__all__`: constants, then types, then functions.

  >>> exported({'b': 1, '_c': 2, 'A': 3, 'dataclasses': dataclasses})
  ['A', 'b']
  """
  names = [
    name
    for name, value in namespace.items()
    if not name.startswith('_') and not isinstance(value, types.ModuleType)
  ]
  rank = lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
  return sorted(names, key=rank)


def tinies(*registries: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
  """Functions that make the small instances of all factories: `ease`, `l2p: beside lora`, ...

  >>> from pecft_jax.peft import PEFTS
  >>> tinies(PEFTS)['lora']().init.__name__
  'init'
  """
  return {
    f'{name}: {variant}' if variant else name: make
    for registry in registries
    for name, factory in registry.items()
    for variant, make in about_of(factory).tiny.items()
  }
