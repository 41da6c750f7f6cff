"""Labelled batches in `data/incoming/`: add, watch, check and quarantine them."""
