"""Named choices of parts."""
