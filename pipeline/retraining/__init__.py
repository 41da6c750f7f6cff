"""Unattended retraining in a separate checkout."""
