"""Evaluation: metrics, scores with intervals, controls, and verifying what a shared model claims."""
