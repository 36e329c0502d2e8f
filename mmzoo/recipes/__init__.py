"""Define recipes: the choices that make a model, as validated data. Imports no torch."""
