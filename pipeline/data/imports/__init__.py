"""Import a collection of labelled pictures as a dataset of the project: `pipeline data import`."""
