"""Import and export checkpoints of other code."""
