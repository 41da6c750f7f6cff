"""Keeping the project for years: garbage collection, backup, upgrade."""
