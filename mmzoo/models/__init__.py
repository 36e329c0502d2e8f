"""Models: assembling them from a recipe, loading them, and the way of data through them."""
