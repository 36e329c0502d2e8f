"""Fusion families: prefix, projector, single-stream concat, late fusions, cross-attention."""
