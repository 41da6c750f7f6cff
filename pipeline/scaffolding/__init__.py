"""A new project, made from this one."""
