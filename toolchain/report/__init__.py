"""`slimdeploy report`: reads a run, draws its charts and writes the page."""
