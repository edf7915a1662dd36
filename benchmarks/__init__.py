"""Experiments that a reader can repeat, their results, and other tools for comparison (`peers/`)."""
