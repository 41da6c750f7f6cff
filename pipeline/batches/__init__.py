"""Labelled batches in `data/incoming/`: added, watched, checked, quarantined."""
