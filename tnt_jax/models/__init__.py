"""TNT and DeiT as Flax linen modules. Nothing here imports the rest of the project."""
