"""Provide the tasks `classify`, `caption` and `vqa`."""
