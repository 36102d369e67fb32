"""Updates that are few numbers in the frequency domain."""
