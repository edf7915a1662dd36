"""What `import slimdeploy` offers: objects in, objects out; no files but those asked for."""
