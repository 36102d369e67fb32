"""Methods that learn adapters."""
