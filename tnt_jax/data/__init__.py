"""What goes in: data sets by name, augmentation, numpy batches.

`settings`, `policy`, `order` and `subsets` are free of TensorFlow. The other modules import it, so import them
where they are used (this package's own import costs nothing).
"""

import os

# Read when TensorFlow starts. Its oneDNN operations compile a kernel for each new shape, and crops have thousands.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
