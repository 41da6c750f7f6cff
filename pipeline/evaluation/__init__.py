"""Metrics, calibration, comparison of models, the champion rule, figures and reports."""
