"""Places where models are shared: the Hub, folders, packs."""
