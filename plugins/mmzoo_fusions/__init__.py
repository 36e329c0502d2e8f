"""Provide fusions: prefix, projector, resampler, Q-Former, concat, encoder states, late, cross- and co-attention.

Joint ones read several encoders together: tensor products, gates, bilinear pooling, cross-modal attention, graph, convolution.
"""
