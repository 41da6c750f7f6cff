"""The commands of the room `serving`."""
