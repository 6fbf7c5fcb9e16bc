"""pytest looks for doctests in every module; this one needs PyTorch and its friends, which no test installs."""

collect_ignore = ["make.py"]
