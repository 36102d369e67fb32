"""Methods that learn prompts."""
