"""The provenance of a result."""

import os
import subprocess
import sys

import pytest

from segjax.training.provenance import provenance


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("GLIBC_TUNABLES", "MALLOC_", "OMP_"))]:
        monkeypatch.delenv(name)


def test_provenance_puts_system_settings_before_the_command(monkeypatch):
    plain = provenance()["command"]
    assert plain.startswith("python")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert (
        provenance()["command"]
        == f"GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_ARENA_MAX=1 OMP_WAIT_POLICY=passive {plain}"
    )


def test_provenance_of_a_package_inside_another_repository_has_no_commit(monkeypatch, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    installed = tmp_path / ".venv/lib/site-packages/segjax/training"
    monkeypatch.setattr(sys.modules[provenance.__module__], "__file__", str(installed / "provenance.py"))
    assert provenance()["commit"] == "unknown"
