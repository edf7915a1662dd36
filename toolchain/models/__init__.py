"""What a network's files say of it: checkpoints, their description, networks by name."""
