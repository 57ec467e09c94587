"""One module per table of a paper; `python -m benchmarks list` names them."""
