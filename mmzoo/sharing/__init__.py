"""Share models: on the Hub, in folders, in packs."""
