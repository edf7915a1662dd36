"""The stages: each reads one artifact, does one thing and writes the next."""
