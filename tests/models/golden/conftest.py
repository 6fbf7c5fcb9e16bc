"""pytest looks for doctests in every module; this one needs PyTorch, which no test installs."""

collect_ignore = ["resnets.py"]
