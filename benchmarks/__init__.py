"""Benchmarks of lowrank: one module per table, one JSON record per row."""
