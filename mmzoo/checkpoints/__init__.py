"""Checkpoint folders: what they hold, what is refused in them, their record and their card."""
