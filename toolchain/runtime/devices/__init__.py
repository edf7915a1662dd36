"""Implementations of `runtime.device.Device`, one file each."""
