"""slimdeploy: train a sparse network, prune it, and put a measured engine on the edge."""

__version__ = "0.1.0"
