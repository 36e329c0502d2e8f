"""Inputs of an encoder by modality: how they are opened, told apart and batched."""
