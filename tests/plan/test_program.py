import jax
import jax.numpy as jnp
from plan_steps import shape

from pecft_jax.plan.program import program_of


def walk(program):
  """All operations, those of bodies after their own."""
  for op in program.ops:
    yield op
    for body in op.bodies:
      yield from walk(body.program)


def names(function, *args):
  """How often each primitive is in a program."""
  found = {}
  for op in walk(program_of(function, *args)):
    found[op.name] = found.get(op.name, 0) + 1
  return found


def test_what_nothing_reads_is_left_out():
  found = names(lambda x, w: (x @ w, x.T @ x)[0], shape(3, 5), shape(5, 7))
  assert found == {'dot_general': 1}


def test_calls_are_inlined():
  inner = jax.jit(lambda x: jax.nn.relu(x) @ x)
  found = names(jax.checkpoint(lambda x: inner(inner(x))), shape(4, 4))
  assert found['dot_general'] == 2
  assert not found.keys() & {'jit', 'pjit', 'custom_jvp_call', 'checkpoint', 'remat2'}


def test_a_loop_does_not_compute_state_that_no_result_depends_on():
  def run(x, w, rows):
    def body(state, row):
      kept, lost, fed = state
      # `fed` goes into `kept`, one step later; `lost` only into itself.
      return (kept + fed, lost @ w, jnp.sin(fed * row)), (lost @ w).sum()

    return jax.lax.scan(body, (x, w, x), rows)[0][0]

  found = names(run, shape(3), shape(5, 5), shape(7))
  assert 'dot_general' not in found
  assert found['sin'] == 1


def test_a_loop_keeps_what_its_rows_need():
  body = lambda x, w: (x @ w, x.sum())
  run = lambda x, ws: jax.lax.scan(body, x, ws)[1]
  assert names(run, shape(3, 5), shape(7, 5, 5))['dot_general'] == 1


def test_branches_are_left_out_where_their_results_are():
  run = lambda x, w: jax.lax.cond(
    x[0, 0] > 0, lambda: (x.sum(), x @ w), lambda: (x.max(), 2 * x @ w)
  )
  assert 'dot_general' not in names(lambda x, w: run(x, w)[0], shape(3, 5), shape(5, 5))
  assert names(run, shape(3, 5), shape(5, 5))['dot_general'] == 2


def test_positions_of_outputs_stay():
  program = program_of(lambda x: (x + 1, x, jnp.zeros(2)), shape(3))
  assert [value.shape for value in program.outputs] == [(3,), (3,), (2,)]
  assert program.outputs[1] is program.inputs[0]
