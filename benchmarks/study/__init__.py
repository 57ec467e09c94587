"""What the studies share: a cut encoder, training of many adapters, scores."""
