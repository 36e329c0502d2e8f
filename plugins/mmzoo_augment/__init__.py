"""Provide augmentations of pictures, through torchvision, and of sound."""
