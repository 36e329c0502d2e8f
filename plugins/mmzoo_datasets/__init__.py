"""Provide the data sets `easy-vqa`, `openmoji`, `files` and `datasets`."""
