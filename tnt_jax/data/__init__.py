"""Input pipeline: data sets by name, augmentation, NumPy batches. Imports neither jax nor TensorFlow."""
