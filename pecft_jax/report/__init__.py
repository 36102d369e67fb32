"""Reports: one run for the terminal or as a page, several runs side by side."""

from pecft_jax.report.compare import comparison_markdown, write_comparison
from pecft_jax.report.page import write_page
from pecft_jax.report.read import Run, read_run
from pecft_jax.report.tables import accuracy_table, metrics_table, print_run

__all__ = [
  'Run',
  'accuracy_table',
  'comparison_markdown',
  'metrics_table',
  'print_run',
  'read_run',
  'write_comparison',
  'write_page',
]
