"""The commands of `pecft`, a file each; what they import in functions is slow to load."""
