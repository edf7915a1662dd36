"""`python -m slimdeploy.toolchain …` is `slimdeploy …` (what `torchrun -m` needs)."""

from slimdeploy.toolchain.cli import main

main()
