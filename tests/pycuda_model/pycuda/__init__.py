"""A model of pycuda's contexts and threads, in host memory: what `devices/pycuda.py` calls, and no more."""
