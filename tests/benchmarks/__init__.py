"""The benchmarks mirror benchmarks/."""
