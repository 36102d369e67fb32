"""Runs share compiled functions, and can be stopped at will."""

from run_fixtures import interrupt, shared_steps

__all__ = ('interrupt', 'shared_steps')
