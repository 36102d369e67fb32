"""What families of backbones share."""
