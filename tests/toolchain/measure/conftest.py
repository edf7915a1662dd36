"""The fakes are a module of their own, importable by name: worker processes open them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
