"""Tasks: `classify`, `caption` and `vqa`."""
