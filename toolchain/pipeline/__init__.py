"""`slimdeploy run`: a recipe, its stages in order, and the table of results."""
