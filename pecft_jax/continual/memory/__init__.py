"""Arrays that methods carry: buffers and statistics."""
