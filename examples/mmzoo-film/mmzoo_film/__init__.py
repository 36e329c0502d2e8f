"""Add to mmzoo: fusion, recipe."""
