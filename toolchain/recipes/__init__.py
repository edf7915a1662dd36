"""The recipes that come with slimdeploy, as TOML files."""
