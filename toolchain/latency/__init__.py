"""Latency tables: measured on a device, fitted, and used for pruning to milliseconds. No torch here."""
