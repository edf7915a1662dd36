"""Many runs of one recipe, distributed over processes and machines, and the best trade-offs among them."""
