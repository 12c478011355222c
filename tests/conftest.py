"""Shared fixtures: where the real scans lie, if they do."""

import pathlib

import pytest

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> pathlib.Path:
    if not SHARED.is_dir():
        pytest.skip("the real scans (../shared) are not here")
    return SHARED
