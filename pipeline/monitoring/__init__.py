"""Drift of batches from the training data."""
