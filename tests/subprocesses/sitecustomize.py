"""Python runs this at the start of every process whose PYTHONPATH has this folder: they know the tiny
networks then.
"""

import tiny  # noqa: F401
