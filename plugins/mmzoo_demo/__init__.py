"""Provide the command ``mmzoo demo``."""
