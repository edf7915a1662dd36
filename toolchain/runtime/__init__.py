"""Sessions: one protocol, `session.Session`, over all runtimes. Only `torch.py` needs torch."""
