"""What a model learned: curves, attention maps, mistakes and figures of a run."""
