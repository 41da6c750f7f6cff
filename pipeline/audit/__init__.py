"""Lineage of registered versions, their reproduction, and the verification of all records."""
