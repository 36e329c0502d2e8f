"""Provide metrics of labels, of captions and of answers."""
