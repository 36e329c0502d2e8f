"""Provide recipes: named choices of parts."""
