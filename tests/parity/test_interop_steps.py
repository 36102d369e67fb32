"""One step of training leads to the same adapter here and in huggingface/peft.

Both start from one file with random factors, none of which is zero, and take the gradient of one
batch in float32. An AdamW step is rate * g / (|g| + eps): where |g| is below the rounding of g, its
sign is noise, and with the usual eps of 1e-8 so is the step. With eps = 1e-3 the step is smooth in
g: a rounding error of 1e-6 changes it by 1e-5 at most at a rate of 1e-2. Tolerance 1e-4.

Layers whose tensors are those of a site are compared: in timm's qkv, what is three adapters here is
one there, with more to train.
"""

import jax
import numpy as np
import optax
import pytest
from hf_pairs import CLASSES, adapted, llama_pair, next_words_pair, vit_pair

from pecft_jax import peft
from pecft_jax.interop import load_hf_peft, save_hf_peft
from pecft_jax.interop.hf_types import TYPES
from pecft_jax.paths import named_leaves

torch = pytest.importorskip('torch')
hf = pytest.importorskip('peft')

ATOL = 1e-4
RATE, EPS, DECAY = 1e-2, 1e-3, 0.1  # Of AdamW; plain steps have ten times its rate.
THEIRS = {
  'sgd': lambda parameters: torch.optim.SGD(parameters, 10 * RATE),
  'adamw': lambda parameters: torch.optim.AdamW(parameters, RATE, eps=EPS, weight_decay=DECAY),
}
OURS = {'sgd': optax.sgd(10 * RATE), 'adamw': optax.adamw(RATE, eps=EPS, weight_decay=DECAY)}
LABELS = np.arange(5) % CLASSES

# By type: transforms at the layers that a pattern names, here and there with the same numbers.
TRANSFORMS = {
  'ADALORA': lambda at: [peft.adalora(at, 3, 2, alpha=5.0)],
  'BOFT': lambda at: [peft.boft(at, 4)],
  # Its backward pass there has a wrong gradient of inputs (as of 0.21): the last layer alone.
  'C3A': lambda at: [peft.c3a('fc2|down', 4)],
  'DELORA': lambda at: [peft.delora(at, 3)],
  'FOURIERFT': lambda at: [peft.fourierft(at, 40)],
  'HIRA': lambda at: [peft.hira(at, 3)],
  'HRA': lambda at: [peft.hra(at, 4)],
  'IA3': lambda at: [peft.ia3(outputs='attn/out$|up', inputs='fc2|down')],
  'LN_TUNING': lambda at: [peft.ln_tuning()],
  'LOHA': lambda at: [peft.loha(at, 2, alpha=3.0)],
  'LOKR': lambda at: [peft.lokr(at, 2, alpha=3.0), peft.lokr(at, 1, decompose_both=True)],
  'LORA': lambda at: [peft.lora(at, 2, alpha=5.0), peft.rslora(at, 3), peft.dora(at, 2)],
  'MISS': lambda at: [peft.miss(at, 3)],
  'OFT': lambda at: [peft.oft(at, 4), peft.oft(at, 4, terms=None, shared=True)],
  'RANDLORA': lambda at: [peft.randlora(at, 5, 10.0)],
  'SHIRA': lambda at: [peft.shira(at, 2)],
  'VERA': lambda at: [peft.vera(at, 5, fan_in=60)],
}
PROMPTS = {
  'PROMPT_TUNING': (peft.prompt_tuning(3), ('sgd', 'adamw')),
  # Keys are stored there before a rotation: plain gradients turn with them, Adam's do not.
  'PREFIX_TUNING': (peft.prefix(length=3), ('sgd',)),
}
OTHERS = {
  'ADAPTION_PROMPT': 'a prompt is trained there, its keys and values are here',
  'OSF': 'what it keeps must be parts of the weights: compared beside its layer, in test_osf.py',
  'CARTRIDGE': 'is read, and then a prefix',
  'CPT': 'is read, and then a prompt',
  'P_TUNING': 'its file has what its network makes, and not the network that is trained',
}
AT = {'images': r'attn/out$|fc', 'texts': r'attn/(q|v)$|up'}
CASES = [
  (model, kind, which)
  for kind, made in TRANSFORMS.items()
  for model, at in AT.items()
  for which in range(len(made(at)))
]


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  return {
    'images': vit_pair(tmp_path_factory.mktemp('timm'), depth=1),
    'texts': llama_pair(tmp_path_factory.mktemp('llama'), depth=1),
  }


def test_every_type_is_trained_or_has_a_reason():
  assert {*TRANSFORMS, *PROMPTS, 'TRAINABLE_TOKENS', *OTHERS} == TYPES.keys()


def our_steps(pair, found, labels, trained_head=True):
  """The delta and the head after one step of each optimizer."""
  active, kept = peft.split_kept(found.delta)
  start = (active, found.head) if trained_head else (active, None)

  @jax.jit
  def gradient(trained):
    def loss(trained):
      active, head = trained
      head = found.head if head is None else head
      delta = peft.combine(active, kept)
      pooled = pair.ours.apply(pair.params, pair.x, delta, peft=found.peft).pooled
      scores = pooled @ head.kernel + head.bias
      return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    return jax.grad(loss)(trained)

  grads, ends = gradient(start), {}
  for name, optimizer in OURS.items():
    updates, _ = optimizer.update(grads, optimizer.init(start), start)
    moved, head = optax.apply_updates(start, updates)
    ends[name] = found._replace(delta=peft.combine(moved, kept), head=head)
  return ends


def their_steps(pair, model, labels, directory):
  """Writes the adapter after one step of each optimizer."""
  trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
  torch.nn.functional.cross_entropy(pair.forward(model), torch.tensor(labels)).backward()
  start = [parameter.detach().clone() for parameter in trained]
  for name, optimizer in THEIRS.items():
    with torch.no_grad():
      for parameter, value in zip(trained, start, strict=True):
        parameter.copy_(value)
    optimizer(trained).step()
    model.save_pretrained(directory / name)


def compare(pair, found, ends, directory, names=tuple(OURS)):
  for name in names:
    back = load_hf_peft(directory / name, pair.ours, params=pair.params)
    trees = [(peft.split_kept(each.delta)[0], each.head) for each in (found, ends[name], back)]
    leaves = [dict(named_leaves(tree)) for tree in trees]
    assert leaves[1].keys() == leaves[2].keys()
    moved = [float(np.abs(leaves[0][at] - leaf).max()) for at, leaf in leaves[1].items()]
    assert max(moved) > 10 * ATOL
    for at, leaf in leaves[1].items():
      np.testing.assert_allclose(leaves[2][at], leaf, atol=ATOL, err_msg=f'{name}: {at}')


@pytest.mark.parametrize(('model', 'kind', 'which'), CASES, ids=str)
def test_one_step_leads_to_the_same_adapter(model, kind, which, pairs, tmp_path):
  pair = pairs[model]
  found = adapted(pair.ours, pair.params, TRANSFORMS[kind](AT[model])[which])
  save_hf_peft(tmp_path / 'start', pair.ours, found, pair.params)
  theirs = hf.PeftModel.from_pretrained(pair.theirs(), tmp_path / 'start', is_trainable=True)
  their_steps(pair, theirs.eval(), LABELS, tmp_path)
  compare(pair, found, our_steps(pair, found, LABELS), tmp_path)


@pytest.mark.parametrize('kind', PROMPTS)
def test_one_step_leads_to_the_same_prompt(kind, pairs, tmp_path):
  pair, head = next_words_pair(pairs['texts'])
  transform, names = PROMPTS[kind]
  found = adapted(pair.ours, pair.params, transform)._replace(head=head)
  save_hf_peft(tmp_path / 'start', pair.ours, found._replace(head=None), pair.params)
  theirs = hf.PeftModel.from_pretrained(pair.theirs(), tmp_path / 'start').eval()
  theirs.prompt_encoder.requires_grad_(True)  # It loads prompts as frozen ones only.
  their_steps(pair, theirs, LABELS, tmp_path)
  start = found._replace(head=None)
  compare(pair, start, our_steps(pair, found, LABELS, trained_head=False), tmp_path, names)


def test_one_step_leads_to_the_same_tokens(pairs, tmp_path):
  # There it has no classifier to train beside it.
  pair, head = next_words_pair(pairs['texts'])
  found = adapted(pair.ours, pair.params, peft.trainable_tokens((4, 30, 7)))._replace(head=head)
  start = found._replace(head=None)
  save_hf_peft(tmp_path / 'start', pair.ours, start, pair.params)
  theirs = hf.PeftModel.from_pretrained(pair.theirs(), tmp_path / 'start', is_trainable=True)
  their_steps(pair, theirs.eval(), LABELS, tmp_path)
  compare(pair, start, our_steps(pair, found, LABELS, trained_head=False), tmp_path)
