"""What `per_site` refuses of the functions that it is given."""

import jax
import jax.numpy as jnp
import pytest

from pecft_jax.peft import per_site
from pecft_jax.typing import Site, SiteSpec

PARAMS = {'fc': {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}}
ARGS = {
  'linear': (jnp.ones((4, 5, 3)), jnp.ones((3, 2)), jnp.zeros(2)),
  'norm': (jnp.ones((4, 5, 3)), jnp.ones(3), None),
  'attend': (jnp.ones((4, 5, 2, 3)), *2 * [jnp.ones((4, 6, 2, 3))], None),
  'sublayer': (jnp.ones((4, 5, 3)), jnp.ones((4, 5, 3))),
  'tokens': (jnp.ones((4, 5, 3)),),
}
RESULTS = {
  'linear': (4, 5, 2),
  'norm': (4, 5, 3),
  'attend': (4, 5, 2, 3),
  'sublayer': (4, 1, 3),
  'tokens': (4, 9, 3),
}


def result(kind, shape):
  """What a site of a kind gives where the transform's `run` returns an array of a shape."""
  site = Site(kind, 'fc')
  peft = per_site(kind, 'fc', lambda *_: None, lambda *_: jnp.zeros(shape))
  run = lambda *args: peft.intercept({'fc': None}, site, None, *args)
  return jax.eval_shape(run, *ARGS[kind])


@pytest.mark.parametrize('kind', RESULTS)
def test_a_result_has_the_shape_of_its_site(kind):
  assert result(kind, RESULTS[kind]).shape == RESULTS[kind]


@pytest.mark.parametrize('kind', RESULTS)
@pytest.mark.parametrize('wrong', [lambda s: (*s[:-1], 7), lambda s: (1, *s[1:]), lambda s: s[1:]])
def test_a_result_of_another_shape_is_refused_with_the_name_of_the_site(kind, wrong):
  with pytest.raises(ValueError, match=rf"the result of '{kind}' site 'fc'"):
    result(kind, wrong(RESULTS[kind]))


@pytest.mark.parametrize(
  ('part', 'changed'),
  [
    ('weights', lambda old: old._replace(main=old.main[:1])),
    ('weights', lambda old: old._replace(main=old.main.T)),
    ('bias', lambda old: old._replace(bias=old.bias[:1])),
  ],
)
def test_merged_weights_of_another_shape_are_refused_with_the_name_of_the_site(part, changed):
  w, b = PARAMS['fc'].values()
  spec = SiteSpec(Site('linear', 'fc'), (w[:1], w, b), w[:1])
  peft = per_site('linear', 'fc', lambda *_: None, None, lambda leaf, old: changed(old))
  delta = peft.init(jax.random.key(0), [spec], PARAMS)
  with pytest.raises(ValueError, match=f"the merged {part} of 'linear' site 'fc'"):
    peft.merge(delta, PARAMS)
