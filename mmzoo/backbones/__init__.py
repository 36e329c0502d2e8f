"""Fetch the files of pretrained backbones from a Hub or a folder, and load them into models of transformers."""
