"""Provide the data sets `easy-vqa`, `openmoji`, `three-signals`, `files` and `datasets`."""
