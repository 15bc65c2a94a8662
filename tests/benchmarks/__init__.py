"""Tests of benchmarks/, in the same layout."""
