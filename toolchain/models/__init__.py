"""Checkpoints, the description of a network, and networks by name."""
