"""Low-rank and multiplicative transforms."""
