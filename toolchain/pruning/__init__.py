"""Channel pruning: which channels go together (`groups`), which go (`criteria`, `selection`), and the cut."""
