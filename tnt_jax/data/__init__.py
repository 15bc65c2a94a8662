"""What goes in: data sets by name, augmentation, numpy batches. Neither jax nor TensorFlow is imported here."""
