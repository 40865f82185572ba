"""Benchmarks: every number is a ratio to other ways of computing the same thing, measured in the same run."""
