"""Pretrained backbones: their files on a Hub or in a folder, and models of transformers made from them."""
