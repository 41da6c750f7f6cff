"""Compute the partitions of data stages on the workers of a Dask cluster."""
