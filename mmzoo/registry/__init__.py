"""Find, load and register plugins, keep broken ones from affecting the rest, and diagnose an installation."""
