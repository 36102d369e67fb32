"""The primitives of jax by what they cost."""


def _names(text: str) -> frozenset[str]:
  return frozenset(text.split())


# One floating-point operation for each element made.
ARITHMETIC = _names(
  'add add_any sub mul div rem neg abs sign max min clamp pow integer_pow square sqrt rsqrt cbrt '
  'exp exp2 expm1 log log1p logistic tanh sin cos tan erf erfc erf_inv floor ceil round nextafter'
)

# One for each element read.
REDUCTIONS = _names('reduce_sum reduce_max reduce_min reduce_prod argmax argmin cumsum')

# None, and no array of its own either: the elements of another one, or some of them.
PARTS = _names('slice split unstack')
VIEWS = PARTS | _names(
  'reshape squeeze expand_dims broadcast_in_dim transpose stop_gradient copy rev'
)

# What a compiler computes where it is read, as long as nothing needs it to lie in memory.
JOINED = VIEWS | ARITHMETIC | _names(
  'select_n eq ne lt le gt ge and or not xor is_finite iota pad concatenate convert_element_type '
  'bitcast_convert_type shift_left shift_right_logical shift_right_arithmetic dynamic_slice '
  'polynomial random_wrap random_unwrap'
)  # fmt: skip

# What may compute its inputs while it reads them.
JOINING = JOINED | REDUCTIONS | _names('reduce_and reduce_or reduce_xor')
