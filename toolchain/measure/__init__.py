"""Measuring: latency, memory, power and accuracy of anything that is a Session. No torch here."""
