"""Side-by-side timings against peers, in one process, as ratios."""
