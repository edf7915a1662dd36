"""`slimdeploy report`: a run as one page to look at. Reading, charts and page are apart."""
