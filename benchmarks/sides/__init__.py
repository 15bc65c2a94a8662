"""The processes that benchmarks.speed times: one side of a comparison each, in turns."""
