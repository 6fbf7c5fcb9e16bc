"""Uncertainty of trained networks: what is measured after the training, on data that it has not seen."""
