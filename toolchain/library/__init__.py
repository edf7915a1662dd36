"""The functions of `import slimdeploy`: they take and return objects, and write only the files asked for."""
