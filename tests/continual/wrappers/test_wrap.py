import pytest

from pecft_jax.continual import METHODS, WRAPPERS, finetune, joint, ranpac, simplecil
from pecft_jax.continual.wrappers.wrap import wrap
from pecft_jax.peft import lora

from ..tiny import CAPACITY, TOY

FC = lora('fc$', rank=2)


@pytest.mark.parametrize('name', WRAPPERS)
def test_methods_that_forget_nothing_are_refused(name):
  for inner in (simplecil(TOY, CAPACITY), ranpac(TOY, CAPACITY, peft=FC, projection=9)):
    with pytest.raises(ValueError, match=f'{name} has no effect on {inner.name}'):
      WRAPPERS[name](inner)
  with pytest.raises(ValueError, match=f'{name} has no meaning around joint'):
    WRAPPERS[name](joint(TOY, CAPACITY, peft=FC))


def test_all_that_is_not_a_hook_is_the_inner_methods():
  inner = finetune(TOY, CAPACITY, peft=FC)
  outer = wrap(inner, 'thing')
  assert outer.name == 'thing(finetune)'
  fields = ('capacity', 'backbone', 'query', 'transforms', 'trains', 'passes')
  for field in fields:
    assert getattr(outer, field) is getattr(inner, field)


def test_absent_hooks_stay_absent():
  outer = wrap(finetune(TOY, CAPACITY, peft=FC), 'thing')
  assert outer.prepare is None and outer.consolidate is None
  counted = finetune(TOY, CAPACITY, peft=FC)._replace(
    prepare=lambda params, memory, env, batch: memory + 1
  )
  outer = wrap(counted, 'thing')
  assert outer.prepare({}, {'inner': 3, 'own': 5}, None, None) == {'inner': 4, 'own': 5}


def test_hooks_of_the_inner_method_see_its_own_memory():
  seen = []

  def note(params, memory, *rest):
    seen.append(memory)
    return params, memory

  inner = finetune(TOY, CAPACITY, peft=FC)._replace(begin_task=note, end_task=note)
  outer = wrap(inner, 'thing')
  assert outer.begin_task(1, {'inner': 'a', 'own': 'b'}, None, None) == (
    1,
    {'inner': 'a', 'own': 'b'},
  )
  outer.end_task(1, {'inner': 'c', 'own': 'd'}, None)
  assert seen == ['a', 'c']
  assert outer.project is None


def test_no_wrapper_shares_a_name_with_a_method():
  assert not set(METHODS) & set(WRAPPERS)
