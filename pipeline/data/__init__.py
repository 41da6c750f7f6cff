"""Sources and decoders of images, the table on disk, batches, validation, split and window."""
