"""What it learned: curves, attention maps and figures of a run."""
