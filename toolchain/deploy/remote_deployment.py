"""The JSON output of `slimdeploy deploy --json` on another machine, possibly of another version of
slimdeploy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError


@dataclass(frozen=True)
class RemoteDeployment:
    """The version in use there. Fields that a rollback doesn't report are None. `document` is the whole
    output.
    """

    version: str
    max_error: float
    """Largest difference of its golden outputs from the host's, relative to the largest logit."""
    variant: str | None
    backend: str | None
    p50_ms: float | None
    """Median latency of one image."""
    document: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.document


def read_deployment(output: str) -> RemoteDeployment:
    """Raises SlimdeployError for other output, e.g. of another program."""
    try:
        document = json.loads(output)
        latency = document.get("latency_ms")
        found = RemoteDeployment(
            version=document["version"],
            max_error=document["golden"]["max_error"],
            variant=document.get("variant"),
            backend=document.get("backend"),
            p50_ms=None if latency is None else latency["p50"],
            document=document,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        found = None
    if found is None or not _typed(found):
        raise SlimdeployError(f"slimdeploy there answered {output[:80]!r}, which is no deployment's JSON")
    return found


def _typed(found: RemoteDeployment) -> bool:
    texts = (found.version, found.variant or "", found.backend or "")
    numbers = (found.max_error, 0.0 if found.p50_ms is None else found.p50_ms)
    return all(isinstance(text, str) for text in texts) and all(isinstance(n, int | float) for n in numbers)
