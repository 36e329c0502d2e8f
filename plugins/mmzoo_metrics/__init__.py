"""Metrics: of labels, of captions and of answers."""
