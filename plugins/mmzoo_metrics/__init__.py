"""Metrics: `accuracy`, `exact-match`, `precision`, `recall` and `f1`."""
