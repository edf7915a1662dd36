"""Deployment: bundles, their installation on devices, and serving. No torch."""
