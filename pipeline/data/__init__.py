"""Where images come from, what they look like on disk, and whether they are good."""
