"""Plugins and what they register: entries, hooks, discovery, loading, and what is done about broken ones."""
