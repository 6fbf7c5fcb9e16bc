"""Every config in configs/ builds, is valid, and says how it is run."""

import importlib
import pkgutil

import pytest

import configs
from segjax.training import validate

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_valid_and_its_header_says_how_to_run_it(name):
    module = importlib.import_module(f"configs.{name}")
    validate(module.get_config())
    assert "COMMAND: " in module.__doc__


def test_there_are_configs():
    assert {"camvid_unet", "crackforest_unet", "road_debris_ablation"} <= set(NAMES)
