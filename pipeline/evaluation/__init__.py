"""Metrics, calibration, comparison of models, the champion rule, figures. Plain data in, files out."""
