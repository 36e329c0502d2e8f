"""Evaluate models: metrics, scores with intervals, controls, and verification of the scores that a shared model claims."""
