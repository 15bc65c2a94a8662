"""What goes in: data sets by name, augmentation, numpy batches.

`settings` is free of TensorFlow. `sources`, `records`, `digits`, `augment`, `randaugment` and `pipeline` import it, so
import those where they are used (this package's own import costs nothing).
"""
