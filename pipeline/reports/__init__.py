"""Figures, tables and the evaluation's arithmetic: plain data in, files out."""
