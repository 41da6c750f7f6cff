"""Maintenance of the stores: garbage collection, backup, upgrade."""
