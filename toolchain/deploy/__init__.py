"""From a finished model to a device that runs it: the bundle, its installation there, and serving. No
torch.
"""
