"""Methods that are built on stored examples."""
