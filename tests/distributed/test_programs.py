"""Frozen weights stay where they are, or are gathered layer by layer; activations never are."""

import math

import pytest

from distributed.devices import report_of
from distributed.programs import BATCH, CASES, DEPTH, HIDDEN, RANK, VOCABULARY, WIDTH

pytestmark = pytest.mark.slow
# Devices along `data` and `model`.
SPLIT = {**{f'{case}, 4 x 2': (4, 2) for case in CASES}}
SPLIT |= {'finetune, 2 x 4': (2, 4), 'loop, 4 x 2': (4, 2), 'decoder, 4 x 2': (4, 2)}
GATHERED = [f'{case}, fsdp' for case in CASES]
TOKENS, PATCH = 10, 4 * 4 * 3


@pytest.fixture(scope='module')
def found(shared):
  """All that the process with eight devices reports."""
  return report_of('programs.py', shared / 'programs.json')


def _matrices(program):
  """Shapes of frozen matrices: whole stacks and single layers, on all devices and on one."""
  shapes = [shape for name, pair in program['frozen'].items() if '/' in name for shape in pair]
  kernels = [shape for shape in shapes if len(shape) > 1 and min(shape[-2:]) >= PATCH // 8]
  return {tuple(shape[cut:]) for shape in kernels for cut in range(len(shape) - 1)}


def _moved(program, *kinds):
  """Shapes of all results of collectives of some kinds."""
  return {
    tuple(shape)
    for exchange in program['exchanges']
    if exchange['kind'] in kinds or not kinds
    for shape in exchange['shapes']
  }


@pytest.mark.parametrize('name', [*SPLIT, *GATHERED])
def test_no_program_waits_for_the_host(name, found):
  assert found[name]['calls_home'] == []


@pytest.mark.parametrize('name', SPLIT)
def test_no_frozen_weight_moves_under_tensor_parallelism(name, found):
  program = found[name]
  matrices = _matrices(program)
  assert (WIDTH, HIDDEN) in matrices
  assert (WIDTH // SPLIT[name][1], WIDTH) in matrices  # What a device holds of attn/out.
  assert not matrices & _moved(program)
  sizes = {math.prod(shape) for shape in matrices}
  assert not sizes & {math.prod(shape) for shape in _moved(program, 'all-gather')}


@pytest.mark.parametrize('name', ['finetune, 4 x 2', 'finetune, 2 x 4', 'loop, 4 x 2'])
def test_a_lora_step_adds_up_activations_over_model_and_gradients_over_data(name, found):
  program, (data, model) = found[name], SPLIT[name]
  assert {exchange['kind'] for exchange in program['exchanges']} == {'all-reduce'}
  activations = {
    (BATCH // data * tokens, width) for tokens in (1, TOKENS) for width in (WIDTH, RANK)
  }
  held = {tuple(local) for _, local in program['params'].values()}
  held |= {shape[::-1] for shape in held}  # Gradients may be computed transposed.
  over = {'data': set(), 'model': set()}
  for exchange in program['exchanges']:
    for shape in map(tuple, exchange['shapes']):
      if shape:  # Others are counts and losses.
        over['data' if exchange['group'] == data else 'model'].add(shape)
  assert over['model'] == activations
  assert over['data'] <= held
  # The factor of a column-parallel layer that is split with it is added up as it is split.
  assert (RANK, WIDTH // model) in over['data']


@pytest.mark.parametrize('name', GATHERED)
def test_weights_split_by_rows_are_gathered_layer_by_layer(name, found):
  program = found[name]
  gathered = _moved(program, 'all-gather')
  layers = {(WIDTH, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH), (PATCH, WIDTH)}
  assert layers <= gathered
  looped = {
    tuple(shape)
    for exchange in program['exchanges']
    if exchange['repeated'] and exchange['kind'] == 'all-gather'
    for shape in exchange['shapes']
  }
  assert looped >= layers - {(PATCH, WIDTH)}
  stacks = {(DEPTH, *shape) for shape in layers} | {(DEPTH, 3, WIDTH, WIDTH), (3, WIDTH, WIDTH)}
  assert not gathered & stacks


@pytest.mark.parametrize('name', GATHERED)
def test_activations_stay_where_their_examples_are(name, found):
  sizes = [(tokens, width) for tokens in (1, TOKENS, 14) for width in (WIDTH, HIDDEN)]
  wide = {(BATCH, *size) for size in sizes} | {(BATCH * tokens, width) for tokens, width in sizes}
  heads = {(BATCH, TOKENS, 4, WIDTH // 4), (BATCH, 1, TOKENS, WIDTH)}
  assert not (wide | heads) & _moved(found[name])


@pytest.mark.parametrize('name', GATHERED)
def test_no_gradient_of_a_frozen_weight_is_added_up(name, found):
  program = found[name]
  assert not _matrices(program) & _moved(program, 'all-reduce', 'reduce-scatter')


def test_a_lora_step_on_split_weights_gathers_and_adds_up_and_nothing_else(found):
  kinds = {exchange['kind'] for exchange in found['finetune, fsdp']['exchanges']}
  assert kinds == {'all-gather', 'all-reduce'}


def test_embedding_tables_are_never_gathered(found):
  program = found['decoder, fsdp']
  assert program['frozen']['embed/table'] == [[VOCABULARY, WIDTH], [VOCABULARY, WIDTH // 8]]
  moved = _moved(program)
  assert (WIDTH, HIDDEN) in moved
  assert not moved & {(VOCABULARY, WIDTH), (BATCH, TOKENS, WIDTH)}
