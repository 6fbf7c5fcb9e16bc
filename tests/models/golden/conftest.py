"""Files without doctests: importing them needs PyTorch, which the tests do not install."""

collect_ignore = ["efficientnets.py", "resnets.py", "retinanet.py"]
