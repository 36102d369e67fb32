"""Runs share compiled functions, and can be stopped at will."""

from run_fixtures import interrupt, shared_steps, stop_in

__all__ = ('interrupt', 'shared_steps', 'stop_in')
