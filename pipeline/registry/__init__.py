"""Registered versions: registration, decision, aliases, model card, loading."""
