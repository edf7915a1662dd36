"""Run `slimdeploy …` as `python -m slimdeploy.toolchain …`, as `torchrun -m` requires."""

from slimdeploy.toolchain.cli import main

main()
