"""Data sets: `easy-vqa`, `openmoji`, `files` and `datasets`."""
