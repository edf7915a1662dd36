"""Networks as graphs: operators, architectures, import from torch, costs and cutting."""
