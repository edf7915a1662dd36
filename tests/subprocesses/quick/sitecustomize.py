"""As in the folder above, and their bench only pretends to measure."""

import quick_bench
import tiny  # noqa: F401

quick_bench.install()
