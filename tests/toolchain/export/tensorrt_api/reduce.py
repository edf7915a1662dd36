"""The names of the TensorRT classes in use, one file a version: what the fake `tensorrt` of the tests is
made of.

    python tests/toolchain/export/tensorrt_api/reduce.py DUMPS

DUMPS holds one `<version>.json` a version, `{"tensorrt": version, "members": {class: {member: "property" or
[signatures]}}}` (an enum: `{"enum": [names]}`), as read off `dir()` and the docstrings of NVIDIA's own Python
bindings, the `tensorrt*-bindings` wheels on PyPI. `members_of` reads the same off an imported module.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent
CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "DeviceType",
    "EngineInspector",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProfiler",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)


def reduce(members: dict[str, Any]) -> dict[str, Any]:
    """Class -> the names of an enum, or member -> None (a property) or the parameter names of each
    overload.
    """
    return {name: _reduce_class(members[name]) for name in CLASSES if name in members}


def members_of(module: ModuleType) -> dict[str, Any]:
    """The classes of an imported `tensorrt`, in the form of a dump."""
    return {name: _class_members(getattr(module, name)) for name in CLASSES if hasattr(module, name)}


def _reduce_class(members: dict[str, Any]) -> Any:
    if "enum" in members:
        return sorted(members["enum"])
    return {
        name: [_parameters(s) for s in value if "*args" not in s] if isinstance(value, list) else None
        for name, value in sorted(members.items())
    }


def _parameters(signature: str) -> list[str]:
    """`f(self: X, a: int, b: List[int] = []) -> None` → ['a', 'b'], an optional one as `b=`."""
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    while re.search(r"[\[<][^\[\]<>]*[\]>]", inside):  # type arguments and printed defaults hold commas
        inside = re.sub(r"[\[<][^\[\]<>]*[\]>]", "", inside)
    found = [part.strip() for part in inside.split(",")]
    return [
        part.split(":")[0].strip() + ("=" if "=" in part else "")
        for part in found
        if part and not part.startswith("self")
    ]


def _class_members(cls: type) -> dict[str, Any]:
    if hasattr(cls, "__members__"):
        return {"enum": list(cls.__members__)}
    return {
        name: _signatures(getattr(cls, name))
        for name in dir(cls)
        if not name.startswith("_") or name == "__init__"
    }


def _signatures(member: Any) -> Any:
    if not callable(member) or inspect.isclass(member):
        return "property"
    lines = (member.__doc__ or "").splitlines()
    found = [re.sub(r"^\d+\. ", "", line.strip()) for line in lines]
    return [line for line in found if re.match(rf"{member.__name__}\(self", line)] or "property"


if __name__ == "__main__":
    for dump in sorted(Path(sys.argv[1]).glob("*.json")):
        document = json.loads(dump.read_text())
        lines = [
            f" {json.dumps(name)}: {json.dumps(value)}" for name, value in reduce(document["members"]).items()
        ]
        (FOLDER / f"{document['tensorrt']}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
