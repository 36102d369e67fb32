"""How numbers are written."""

import pytest

from pecft_jax.report import glossary


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (glossary.percent(0.9123), '91.2 %'),
    (glossary.points(0.41), '+41.0'),
    (glossary.points(-0.031), '−3.1'),
    (glossary.points(-0.0001), '0.0'),
    (glossary.number(-0.04), '0.0'),
    (glossary.count(999), '999'),
    (glossary.count(1_234_567), '1.23 M'),
    (glossary.size(0), '0 B'),
    (glossary.size(1536), '1.5 KiB'),
    (glossary.size(1023 * 1024), '1023 KiB'),
    (glossary.seconds(12.34), '12.3 s'),
    (glossary.seconds(245), '4 min 05 s'),
    (glossary.seconds(7620), '2 h 07 min'),
    (glossary.listed(list(range(100)), 3), '0, 1, 2, … (100 in all)'),
    (glossary.listed([[1, 2], 'a']), '1, 2, a'),
    (glossary.listed([]), 'none'),
  ],
)
def test_written(text, expected):
  assert text.replace('\u202f', ' ') == expected


def test_forgetting_is_an_amount_and_transfer_a_change():
  metrics = {metric.key: metric for metric in glossary.METRICS}
  assert glossary.written(metrics['forgetting'], 0.042) == '4.2'
  assert glossary.written(metrics['bwt'], 0.042) == '+4.2'
  assert glossary.written(metrics['bwt'], -0.042) == '−4.2'
