"""Studies of the focal loss paper (arXiv 1708.02002) on rare pixels."""
