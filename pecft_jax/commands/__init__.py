"""The commands of `pecft`, one file each; slow imports are inside functions."""
