"""One file per command: parse, call one stage, print. `cli.COMMANDS` lists them."""
