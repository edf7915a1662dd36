"""Runs a model behind one protocol, `session.Session`, whatever computes it. Only `torch.py` needs torch."""
