"""Creation of a new project from this one: `pipeline new`."""
