"""Costs of programs on TPUs, as their compiler estimates them; no TPU is needed."""
