"""Methods that merge what each task has learnt into one model."""
