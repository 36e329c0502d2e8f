"""Provide fusions: prefix, projector, resampler, Q-Former, concat, encoder states, late, cross- and co-attention."""
