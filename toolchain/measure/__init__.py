"""Measurement of latency, memory, power and accuracy of any Session. No torch here."""
