"""The provenance of a result."""

import os

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
