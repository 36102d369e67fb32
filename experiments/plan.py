"""What ViTs and decoders from 86 M to 69 G parameters take to train, with each PEFT: on paper.

    python experiments/plan.py [--out FILE] [--only NAME ...] [--utilisation 0.5] [--check]

Computed from shapes; no weights are made or read, and nothing is compiled except by --check, which
compiles steps of a small model to check the estimates against them.
"""

import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

from pecft_jax.about import about_of
from pecft_jax.backbones import architecture
from pecft_jax.catalog import METHODS, WRAPPERS, method_by_name
from pecft_jax.paths import tree_bytes
from pecft_jax.plan import CHIPS, Plan, abstract_layout, growth, plan, stored_as
from pecft_jax.plan.estimate import abstract_batch, abstract_state, gradient_bytes
from pecft_jax.plan.page import expected
from pecft_jax.text import amount, count
from pecft_jax.train import Rule, adam, fsdp, tensor_parallel
from pecft_jax.train.update import train_step
from pecft_jax.typing import Backbone, Capacity

# One of each kind: rslora costs what lora does, parallel what adaptformer does.
PEFTS = (
  'lora', 'dora', 'vera', 'adaptformer', 'pfeiffer', 'prefix', 'vpt_deep', 'ia3', 'ssf', 'bitfit',
  'linear_probe', 'full',
)  # fmt: skip
CAPACITY = Capacity(tasks=10, classes=100)
RECIPE = adam(1e-3, clip=1.0)


class Case(NamedTuple):
  """A backbone, and the step that is planned.

  Attributes:
    card: of the library.
    batch: examples over all devices.
    axes: of the mesh.
    rules: of the layout.
    stored: dtype of the frozen weights.
    options: of the backbone.
  """

  card: str
  batch: int
  axes: dict[str, int]
  rules: tuple[Rule, ...]
  stored: Any
  options: dict[str, Any]


BF16 = jnp.bfloat16
VIT: dict[str, Any] = {'dtype': BF16, 'scan': True}
TEXT: dict[str, Any] = {
  'dtype': BF16,
  'length': 1024,
  'scan': True,
  'remat': jax.checkpoint_policies.nothing_saveable,
}
ONE = {'data': 1}

CASES = (
  Case('vit_base_patch16_224', 64, ONE, (), jnp.float32, VIT),
  Case('vit_large_patch16_224', 64, ONE, (), jnp.float32, VIT),
  Case('vit_huge_patch14_224', 64, ONE, (), jnp.float32, VIT),
  Case('llama_3.2_1b', 8, ONE, (), BF16, TEXT),
  Case('llama_2_7b', 8, ONE, (), BF16, TEXT),
  Case('llama_2_70b', 8, {'data': 8}, fsdp(), BF16, TEXT),
)

# LoRA on other devices, or stored otherwise.
VARIANTS = (
  Case('vit_large_patch16_224', 64, ONE, (), BF16, VIT),
  Case('llama_2_7b', 8, ONE, (), jnp.float32, TEXT),
  Case('llama_2_7b', 8, ONE, (), BF16, {**TEXT, 'remat': None}),
  Case('llama_2_7b', 64, {'data': 8}, (), BF16, TEXT),
  Case('llama_2_7b', 64, {'data': 8}, fsdp(), BF16, TEXT),
  Case('llama_2_70b', 8, {'data': 1, 'model': 8}, tensor_parallel(), BF16, TEXT),
  Case('llama_2_70b', 256, {'data': 32, 'model': 8}, tensor_parallel(), BF16, TEXT),
)


def backbone_of(case: Case) -> tuple[Backbone, Any]:
  """The backbone of a case, and the shapes of its weights as they are stored."""
  backbone = architecture(case.card, **case.options)
  shapes = jax.eval_shape(backbone.init, jax.eval_shape(lambda: jax.random.key(0)))
  return backbone, stored_as(shapes, case.stored)


def planned(case: Case, peft: str) -> Plan:
  """Fine-tuning with a transform. Raises ValueError where it does not fit the backbone."""
  backbone, frozen = backbone_of(case)
  method = method_by_name('finetune', backbone, CAPACITY, peft=peft)
  layout = abstract_layout(case.axes, case.rules)
  return plan(method, backbone, frozen, RECIPE, batch_size=case.batch, layout=layout)


def described(case: Case) -> str:
  """How a case is run, in words."""
  mesh = ', '.join(f'{axis}={size}' for axis, size in case.axes.items())
  gathered = any('kernel' in rule.pattern and 'data' in rule.axes for rule in case.rules)
  split = ', weights split over data' if gathered else ''
  remat = ', activations recomputed' if case.options.get('remat') else ''
  length = f' of {case.options["length"]} tokens' if 'length' in case.options else ''
  return f'batch {case.batch}{length}, mesh {mesh}{split}, frozen {jnp.dtype(case.stored)}{remat}'


# --- tables --------------------------------------------------------------------------------------


def markdown(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
  """A table whose first column is text."""
  line = lambda cells: f'| {" | ".join(cells)} |'
  titles = list(titles)
  return [line(titles), line(['---', *['---:'] * (len(titles) - 1)]), *map(line, rows)]


MEMORY = (
  'trained',
  'gradients',
  'optimizer',
  'activations',
  'total',
  '80 GB',
  'FLOP',
  'checkpoint',
)


def memory_cells(found: Plan) -> list[str]:
  """The cells of `MEMORY`."""
  memory = found.memory
  return [
    amount(memory.trained, 'B'),
    amount(memory.gradients, 'B'),
    amount(memory.optimizer, 'B'),
    amount(memory.activations, 'B'),
    amount(memory.total, 'B'),
    'fits' if memory.total <= 80e9 else 'no',
    amount(found.step, 'FLOP'),
    amount(found.checkpoint, 'B'),
  ]


def model_section(case: Case, tell: Callable[[str], None]) -> tuple[list[str], dict[str, Plan]]:
  """The table of one model, a row per transform, and the plans."""
  plans, refused = {}, {}
  for peft in PEFTS:
    start = time.perf_counter()
    try:
      plans[peft] = planned(case, peft)
    except ValueError as error:
      refused[peft] = str(error).partition(';')[0]
    tell(f'{case.card} {peft} {time.perf_counter() - start:.1f} s')
  some = plans['lora']
  lines = [
    f'## {case.card}: {count(some.backbone_parameters)} parameters',
    '',
    f'{described(case)[0].upper()}{described(case)[1:]}: {amount(some.memory.frozen, "B")} of '
    'frozen weights on each device'
    + (
      f', and {amount(some.memory.gathered, "B")} of one gathered weight.'
      if some.memory.gathered
      else '.'
    ),
    '',
    *markdown(
      ('PEFT', 'parameters', *MEMORY),
      ([name, count(each.trained_parameters), *memory_cells(each)] for name, each in plans.items()),
    ),
    '',
  ]
  lines += [f'- {name}: {why}.' for name, why in refused.items()] + [''] * bool(refused)
  return lines, plans


def variant_section(tell: Callable[[str], None]) -> list[str]:
  """LoRA, laid out or stored in other ways."""
  rows = []
  for case in VARIANTS:
    found = planned(case, 'lora')
    tell(f'{case.card} {described(case)}')
    h100 = expected(found, CHIPS['h100'], 0.5)
    memory = memory_cells(found)
    rows.append([case.card, described(case), amount(found.memory.frozen, 'B'), memory[3], memory[4],
                 memory[5], amount(sum(found.sent), 'B'), h100.bound])  # fmt: skip
  titles = (
    'model',
    'LoRA, how',
    'frozen',
    'activations',
    'total',
    '80 GB',
    'sent',
    'bound on H100 by',
  )
  return ['## LoRA in other layouts, on each device', '', *markdown(titles, rows), '']


def throughput_section(plans: dict[str, dict[str, Plan]], utilisation: float) -> list[str]:
  """Expected rates on each chip, for three transforms a model."""
  rows = []
  for card, by_peft in plans.items():
    for peft in ('lora', 'linear_probe', 'full'):
      cells = []
      for chip in CHIPS.values():
        got = expected(by_peft[peft], chip, utilisation)
        mark = {'compute': 'c', 'memory': 'm', 'link': 'l'}[got.bound]
        cells.append('—' if got.fits == 'no' else f'{got.rate:,.0f} {mark}')
      rows.append([f'{card}, {peft}', by_peft[peft].unit, *cells])
  return [
    '## Throughput',
    '',
    f'Images or tokens per second over all devices of the mesh above, at {utilisation:.0%} of the '
    'roofline; an assumption, not a measurement. After each figure what binds: c the matrix units, '
    'm memory, l links. A dash: the memory of the chip is too small for the step. Traffic to '
    'memory is the least that there must be, so that these are upper bounds.',
    '',
    *markdown(('', 'unit', *(chip.name for chip in CHIPS.values())), rows),
    '',
  ]


def chips_section() -> list[str]:
  """The figures that rates rest on, with their sources."""
  rows = [
    [c.name, f'{c.bf16 / 1e12:g}', f'{c.float32 / 1e12:g}', f'{c.memory / 1e9:.3g}',
     f'{c.bandwidth / 1e9:g}', f'{c.link / 1e9:g}', '; '.join(c.sources)]
    for c in CHIPS.values()
  ]  # fmt: skip
  titles = ('chip', 'bf16 TFLOP/s', 'float32 TFLOP/s', 'GB', 'GB/s', 'link GB/s', 'source')
  return [
    '## Chips',
    '',
    'Dense peaks; float32 at the default precision of jax (rounded to bfloat16 on TPUs, TF32 on '
    'NVIDIA); links in one direction.',
    '',
    *markdown(titles, rows),
    '',
  ]


def growth_section() -> list[str]:
  """What each method carries after 1, 10 and 100 tasks of ten classes, on ViT-B/16."""
  backbone, frozen = backbone_of(CASES[0])
  cases: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (name, ()) for name, each in METHODS.items() if 'texts' not in about_of(each).needs},
    **{f'{name}(finetune)': ('finetune', (name,)) for name in WRAPPERS},
  }
  rows = []
  for title, (name, wrap) in cases.items():
    build = lambda tasks, name=name, wrap=wrap: method_by_name(
      name,
      backbone,
      Capacity(tasks, 10 * tasks),
      wrap=wrap,
      options={'gdumb': {'size': max(500, 10 * tasks)}},  # At least one example of each class.
    )
    sizes = growth(build, frozen)
    each = (sizes[100] - sizes[10]) / 90
    rows.append([title, *(amount(size, 'B') for size in sizes.values()), amount(each, 'B')])
  return [
    '## What is carried over 100 tasks',
    '',
    'Parameters and memory on ViT-B/16 with room for 1, 10 and 100 tasks of ten classes, every '
    'method and transform with its defaults (GDumb with room for an example of each class); exact. '
    'All of it is allocated from the first task on. '
    'EASE grows with the square of the number of tasks, as it keeps prototypes of all classes in '
    'the subspaces of all tasks; the others in proportion to it, or to the number of classes.',
    '',
    *markdown(('method', '1 task', '10 tasks', '100 tasks', 'a task more, from 10 to 100'), rows),
    '',
  ]


# --- the check -----------------------------------------------------------------------------------

CHECKED = 'lora adaptformer vpt_deep full linear_probe ia3 ssf bitfit prefix vera dora'


def check_section(tell: Callable[[str], None]) -> list[str]:
  """Activations of ViT-Ti/16 steps, beside the temporaries of the compiled ones."""
  case = Case('vit_tiny_patch16_224', 8, ONE, (), jnp.float32, {})
  backbone, frozen = backbone_of(case)
  rows = []
  for peft in CHECKED.split():
    method = method_by_name('finetune', backbone, CAPACITY, peft=peft)
    state, batch = abstract_state(method, RECIPE, frozen), abstract_batch(method, frozen, 8)
    step = lambda s, f, b, method=method: train_step(method, RECIPE, s, f, b)
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    memory: Any = compiled.memory_analysis()
    there = memory.temp_size_in_bytes
    held = gradient_bytes(method, state, frozen, batch) + tree_bytes(state.params)
    rows.append([peft, amount(held, 'B'), amount(there, 'B'), f'{held / there:.2f}'])
    tell(f'checked {peft}')
  titles = ('PEFT', 'activations and gradients', 'temporaries', 'ratio')
  return [
    'Training steps of ViT-Ti/16 (batch 8, float32, blocks one after another): activations and '
    'gradients beside the temporaries that XLA reports of the program that it compiles for the '
    f'CPU (jax {jax.__version__}).',
    '',
    *markdown(titles, rows),
    '',
  ]


HEAD = """# Scale on paper

Made by `python experiments/plan.py --check`, from shapes alone. Nothing here was run on the chips
it speaks of.

Fine-tuning with each PEFT at its defaults (rank 8, bottlenecks of 48 or 64, prompts of 10 or 50),
Adam, 100 classes. Weights of the backbone are stored as the library loads them: float32 for a ViT
(its loader takes no other type), as in the file for a decoder, which is bfloat16. Computation is
in bfloat16, and blocks run as a scan. What is trained, its gradients and Adam's two moments are
float32 and cost 16 bytes a parameter, **on top of** the frozen weights, which stay: full
fine-tuning is 18 bytes a parameter with a bfloat16 backbone, 20 with a float32 one. Decoders
classify texts; there is no language-model head in them.

Exact: weights, trained parameters, gradients, optimizer state, carried state. FLOPs are XLA's count
of the program before compilation. Estimated: activations (programs compiled for the CPU hold 0.95
to 1.35 times as much); time. GB are 10^9 bytes. "80 GB": whether the step fits on a chip with so
many.
"""

CHECKED_HOW = """## How checked

- Bytes of weights, parameters, optimizer state, carried state and batches are equal to those of
  real states on eight devices, for four layouts and five methods
  (`tests/plan/test_eight_devices.py`).
- FLOPs of matrix products and of loops are equal to textbook counts, those of steps to within 10 %
  of what XLA counts in the compiled program (`tests/plan/test_cost.py`).
- Checkpoints: real ones take 90 to 100 % of the bytes of arrays that hold random numbers, and at
  most 1 KiB a leaf besides (`tests/plan/test_carried.py`).
- Sums over a batch split over `data` are equal to those in the program that XLA compiles
  (`tests/plan/test_eight_devices.py`). With `model`, and with split weights, the program of a
  small ViT sends 0.9 to 2.2 times what the rules of the layout need: links are rough there.
- Traffic to and from memory is a lower bound: weights read in both passes, activations, gradients
  and the optimizer's state written and read once.
"""


def main(
  out: pathlib.Path | None = None,
  only: tuple[str, ...] = (),
  utilisation: float = 0.5,
  check: bool = False,
) -> None:
  """Prints the page, and writes it.

  Args:
    out: Markdown file to write.
    only: models whose name contains one of these.
    utilisation: share of the roofline that is assumed to be reached.
    check: compare activations with compiled programs, too.
  """
  console, log = Console(), Console(stderr=True)
  tell = lambda text: log.print(text, style='dim', highlight=False)
  lines, plans = [*HEAD.splitlines(), ''], {}
  for case in CASES:
    if not only or any(part in case.card for part in only):
      section, plans[case.card] = model_section(case, tell)
      lines += section
  lines += [] if only else variant_section(tell)
  lines += [*throughput_section(plans, utilisation), *chips_section(), *growth_section()]
  lines += [*CHECKED_HOW.splitlines(), '']
  lines += check_section(tell) if check else []
  text = '\n'.join(lines).rstrip() + '\n'
  console.print(text, markup=False, highlight=False, soft_wrap=True)
  if out is not None:
    out.write_text(text, encoding='utf-8')


if __name__ == '__main__':
  tyro.cli(main)
