"""Methods that learn low-rank updates."""
