"""What goes in: data sets by name, augmentation, numpy batches.

`settings`, `policy`, `order` and `subsets` are free of TensorFlow. The other modules import it, so import them
where they are used (this package's own import costs nothing).
"""
