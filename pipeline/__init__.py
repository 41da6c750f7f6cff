"""The reference MLOps pipeline for image classification."""
