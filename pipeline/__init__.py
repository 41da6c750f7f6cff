"""The reference MLOps pipeline for image classification on Fashion-MNIST."""
