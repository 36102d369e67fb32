"""How numbers are written."""

import pytest

from pecft_jax import text


@pytest.mark.parametrize(
  ('written', 'expected'),
  [
    (text.percent(0.9123), '91.2 %'),
    (text.points(0.41), '+41.0'),
    (text.points(-0.031), '−3.1'),
    (text.points(-0.0001), '0.0'),
    (text.number(-0.04), '0.0'),
    (text.rounded(0.0), '0'),
    (text.rounded(1234567.0), '1230000'),
    (text.rounded(0.00012345), '0.000123'),
    (text.count(999), '999'),
    (text.count(1_234_567), '1.23 M'),
    (text.size(0), '0 B'),
    (text.size(999), '999 B'),
    (text.size(1_500), '1.5 kB'),
    (text.size(999_999), '1 MB'),
    (text.size(12_345_678), '12.3 MB'),
    (text.amount(2e21, 'FLOP'), '2e+03 EFLOP'),
    (text.duration(0), '0 s'),
    (text.duration(12.34), '12.3 s'),
    (text.duration(59.97), '1 min 00 s'),
    (text.duration(245), '4 min 05 s'),
    (text.duration(3599.7), '1 h 00 min'),
    (text.duration(7620), '2 h 07 min'),
    (text.duration(86399), '1 d 00 h'),
    (text.listed(list(range(100)), 3), '0, 1, 2, … (100 in all)'),
    (text.listed([[1, 2], 'a']), '1, 2, a'),
    (text.listed([]), 'none'),
  ],
)
def test_written(written, expected):
  assert written == expected
