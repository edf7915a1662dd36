"""Latency tables: measured on a device, fitted, and read to prune to milliseconds. No torch here."""
