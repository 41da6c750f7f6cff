"""The `pipeline` command: a thin layer over the flows, the data and the tracking."""
