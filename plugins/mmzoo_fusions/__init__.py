"""Fusion families: prefix, projector, resampler, single-stream concat, encoder states, late fusions, cross- and co-attention."""
