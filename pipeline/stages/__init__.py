"""One module per stage of dvc.yaml, with the stage's name."""
