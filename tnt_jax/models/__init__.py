"""What is computed: the TNT and DeiT models as Flax linen modules. Nothing here imports the rest of the project."""
