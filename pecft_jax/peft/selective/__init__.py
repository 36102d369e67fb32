"""Training some of the model's own weights."""
