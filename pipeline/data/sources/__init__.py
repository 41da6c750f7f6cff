"""Collections of labelled pictures as people have them: folders, tables, arrays, idx. Read for imports and batches."""
