"""The committed sweeps of the focal loss paper as live pages, built from experiments/results/NAME.json alone."""

import importlib
from pathlib import Path

from experiments.sweep.paper_report import report_of_json
from segjax.reporting import html

RESULTS = Path(__file__).parents[1] / "results"
_MODULES = ("focal_ablation", "focal_star", "ohem_vs_focal", "prior_init", "sgd_focal", "training_length")


def committed_sweeps(folder: Path = RESULTS) -> dict[str, str]:
    """Returns the name of the module of each sweep, by the stem of its JSON file in `folder`."""
    return {file.stem: name for name in _MODULES for file in sorted(folder.glob(f"{name}_*.json"))}


def live_page(name: str, folder: Path = RESULTS) -> str:
    """Returns the page of a committed sweep as HTML that loads no file.

    Raises:
      StorageError: the JSON file is not the report of a sweep.
      ConfigError: a field of its config is unknown.
    """
    module = importlib.import_module(f"experiments.focal_paper.{committed_sweeps(folder)[name]}")
    return html(report_of_json(module.PAPER_REPORT, folder / f"{name}.json"))
