"""Recipes: the choices that make a model, as validated data; no torch."""
