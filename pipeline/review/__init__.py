"""Review of the labels: find images whose label is probably wrong, look at them, and correct them.

`pipeline review labels` ranks the images, and `data/corrections.csv` takes the corrections. See `docs/labels.md`.
"""
