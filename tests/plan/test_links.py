from plan_steps import CAPACITY, RECIPE, backbone_of, frozen_of

from pecft_jax.catalog import method_by_name
from pecft_jax.paths import tree_bytes
from pecft_jax.plan import abstract_layout
from pecft_jax.plan.estimate import abstract_state
from pecft_jax.plan.links import sent
from pecft_jax.train import fsdp, tensor_parallel

WIDTH, TOKENS, DEPTH, F32 = 96, 17, 2, 4


def sending(axes, rules=(), local=3):
  backbone, frozen = backbone_of('small'), frozen_of('small')
  method = method_by_name('finetune', backbone, CAPACITY, peft='lora')
  state = abstract_state(method, RECIPE, frozen)
  found = sent(abstract_layout(axes, rules), state, frozen, backbone.sites, local)
  return found, tree_bytes(state.params), frozen


def test_one_device_sends_nothing():
  assert sum(sending({'data': 1})[0]) == 0


def test_gradients_are_summed_over_parts_of_the_batch():
  found, trained, _ = sending({'data': 8})
  assert found.gradients == 2 * 7 / 8 * trained
  assert found.weights == found.activations == 0


def test_split_weights_are_gathered_for_both_passes():
  found, _, frozen = sending({'data': 8}, fsdp())
  linear = (('attn', 'qkv'), ('attn', 'out'), ('mlp', 'fc1'), ('mlp', 'fc2'))
  kernels = DEPTH * F32 * sum(frozen['block_0'][a][b]['kernel'].size for a, b in linear)
  patch = frozen['patch']['kernel'].size * F32
  assert found.weights == 2 * 7 / 8 * (kernels + patch)


def test_split_layers_sum_their_outputs_twice_a_block_and_pass():
  found, _, _ = sending({'data': 1, 'model': 4}, tensor_parallel())
  output = 3 * TOKENS * WIDTH * F32
  # Attention and MLP of each block, forward and backward, as rings of four.
  assert found.activations == DEPTH * 2 * 2 * (2 * 3 / 4) * output
  assert found.gradients == 0
