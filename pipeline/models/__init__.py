"""Networks, losses, the training loop and the model file. The only place that imports Keras and TensorFlow."""
