"""Retraining in a checkout of its own."""
