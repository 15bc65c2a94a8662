"""Processes that benchmarks.speed times in turns: one side of a comparison each."""
