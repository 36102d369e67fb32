"""Methods that classify by statistics of features."""
