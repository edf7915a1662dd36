"""The laboratory: experiments that a reader can repeat, their results, and other tools beside (`peers/`)."""
