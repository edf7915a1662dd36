"""The recipes that come with slimdeploy, as TOML files."""

from __future__ import annotations

from pathlib import Path

RECIPES = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))
DEFAULT = "digits"
