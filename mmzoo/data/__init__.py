"""Data sets: opening them, their tokens and vocabularies, and batches."""
