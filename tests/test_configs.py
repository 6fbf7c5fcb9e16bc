"""Every config in configs/ builds, is valid and has a command; so does every cell of every preset of a sweep."""

import importlib
import pkgutil
from pathlib import Path

import pytest

from experiments.sweep import paper_report
from segjax import configs, shipped_configs
from segjax.training import validate

MODULES = [importlib.import_module(f"segjax.configs.{one.name}") for one in pkgutil.iter_modules(configs.__path__)]
SWEEPS = [
    (module, preset, data)
    for module in MODULES
    if hasattr(module, "get_grids")
    for preset in module.PRESETS
    for data in module.DATA
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_config_is_valid_and_its_header_has_data_and_command(module):
    config, (_, fields) = module.get_config(), shipped_configs.header_fields(Path(module.__file__))
    validate(config)
    assert {"DATA", "COMMAND"} <= set(fields)
    assert fields["DATA"].split(", or ") == list(getattr(module, "DATA", [config.data.name]))


@pytest.mark.parametrize(("module", "preset", "data"), SWEEPS, ids=lambda one: getattr(one, "__name__", one))
def test_sweep_cells_are_valid_and_have_unique_names(module, preset, data):
    seeds = module.get_seeds(preset, data)
    assert len(set(seeds)) == len(seeds) > 0
    # It raises for an invalid config or a repeated name. The cells of another seed differ in the seed alone.
    assert paper_report.make_cells(module, preset, data, seeds=seeds[:1])
    assert preset in module.__doc__.partition("TIME: ")[2]  # the cost


def test_configs_are_found():
    names = {module.__name__ for module in MODULES}
    assert {"segjax.configs.camvid_unet", "segjax.configs.focal_ablation", "segjax.configs.prior_init"} <= names
    assert len({module for module, *_ in SWEEPS}) >= 4
