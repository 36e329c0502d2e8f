"""Integrate mmzoo with other libraries."""
