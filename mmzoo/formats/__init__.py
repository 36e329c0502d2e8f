"""Checkpoints of other code, in and out."""
