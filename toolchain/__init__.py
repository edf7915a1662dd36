"""The stages of the toolchain; each `slimdeploy` command is one of them."""
