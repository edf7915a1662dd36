"""Many runs of one recipe, shared out over processes and machines, and the best trade-offs among them."""
