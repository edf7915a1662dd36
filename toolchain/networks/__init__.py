"""Networks described by a channel configuration. `spec`, `channels`, `layers` and `cost` need no torch."""
