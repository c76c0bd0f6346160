"""Benchmarks: comparisons side by side in one run, medians with their spread; `python -m benchmarks` runs them all."""
