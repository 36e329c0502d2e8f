"""Measure what mmzoo costs, compared with the plain code that a user would write without it: ``python -m benchmarks``."""
