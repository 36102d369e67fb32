from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from pecft_jax.assignments import assign, options_of, read
from pecft_jax.continual import derpp, ewc, l2p, olora
from pecft_jax.peft import adaptformer, bottleneck, lora


@pytest.mark.parametrize(
  ('text', 'hint', 'value'),
  [
    ('7', int, 7),
    ('1e-3', float, 1e-3),
    ('2', float, 2.0),
    ('true', bool, True),
    ('False', bool, False),
    ('a=b.c', str, 'a=b.c'),
    ('none', float | None, None),
    ('8', float | None, 8.0),
    ('3', int | str, 3),
    ('three', int | str, 'three'),
    ('1', bool | int, 1),
    ('1,2,3', tuple[int, ...], (1, 2, 3)),
    ('(0.5, 1)', tuple[float, float], (0.5, 1.0)),
    ('', tuple[int, ...], ()),
    ('4,5', Sequence[int], (4, 5)),
    ('cosine', Literal['cosine', 'constant'], 'cosine'),
    ('{1: 2}', Any, {1: 2}),
    ('text', Any, 'text'),
    ("{'attn': 4}", Mapping[str, int] | None, {'attn': 4}),
  ],
)
def test_values_have_the_annotated_type(text, hint, value):
  found = read(text, hint)
  assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
  ('text', 'hint', 'message'),
  [
    ('1.5', int, "expected an integer, got '1.5'"),
    ('many', float, "expected a number, got 'many'"),
    ('yes', bool, "expected true or false, got 'yes'"),
    ("{'attn': 1.5}", Mapping[str, int], "expected an integer, got '1.5'"),
    ('attn=4', Mapping[str, int], "expected a mapping, as in {'attn': 4}, got 'attn=4'"),
    ('x', int | None, "expected none, got 'x'; or expected an integer"),
    ('1,2,3', tuple[float, float], "expected 2 values, got '1,2,3'"),
    ('cosin', Literal['cosine', 'constant'], "did you mean 'cosine'"),
    ('x', type(ewc), 'takes a function, which has no form on a command line: set it in code'),
  ],
)
def test_values_of_other_types_are_refused(text, hint, message):
  with pytest.raises(ValueError, match=message):
    read(text, hint)


def test_options_are_what_is_not_put_in_by_other_means():
  assert list(options_of(ewc)) == ['strength', 'decay']
  assert list(options_of(l2p)) == [
    'pool', 'length', 'top_k', 'pull', 'select', 'transfer', 'batchwise',
  ]  # fmt: skip
  assert 'pattern' in options_of(lora)


def test_each_part_has_its_own():
  parts = {'olora': olora, 'ewc': ewc, 'lora': lora}
  texts = ['olora.squared=true', 'ewc.strength=10', 'lora.alpha=none', 'lora.pattern=attn/(q|v)$']
  assert assign(texts, parts) == {
    'olora': {'squared': True},
    'ewc': {'strength': 10.0},
    'lora': {'alpha': None, 'pattern': 'attn/(q|v)$'},
  }


def test_names_of_modules_have_dots_too():
  assert assign(['my.own:ewc.decay=0.5'], {'my.own:ewc': ewc}) == {'my.own:ewc': {'decay': 0.5}}


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (
      'ewc.strenght=1',
      r"unknown option of ewc 'strenght'; did you mean 'strength'\? choices: \['d",
    ),
    ('ewx.strength=1', "unknown part 'ewx'; did you mean 'ewc'"),
    ('derpp.size=1', r"'derpp', which is not in use; in use: \['adaptformer', 'ewc'\]"),
    ('ewc.strength', "expected NAME.option=value, as in 'ewc.strength=10', got 'ewc.strength'"),
    ('strength=1', 'expected NAME.option=value'),
    ('ewc.strength=much', "ewc.strength: expected a number, got 'much'"),
    ('ewc.inner=x', "unknown option of ewc 'inner'"),
  ],
)
def test_what_cannot_be_set_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    assign([text], {'ewc': ewc, 'adaptformer': adaptformer}, known=['derpp', 'ewc'])


def test_a_function_cannot_be_written():
  with pytest.raises(ValueError, match=r'bottleneck.activation: takes a Callable'):
    assign(['bottleneck.activation=relu'], {'bottleneck': bottleneck})


def test_nothing_is_set_twice():
  with pytest.raises(ValueError, match=r'derpp.size is set twice'):
    assign(['derpp.size=1', 'derpp.size=2'], {'derpp': derpp})
