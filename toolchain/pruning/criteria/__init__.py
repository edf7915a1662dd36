"""How much a channel matters. One file a criterion, registered by its name in `registry`."""
