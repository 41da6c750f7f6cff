"""The report of a change: what it changes, and what the champion rule would decide."""
