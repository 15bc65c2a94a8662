"""How it learns: config, optimizer, mixing, steps, checkpoints, the loop. Importing this package loads none of them."""
