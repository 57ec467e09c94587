"""What several files need of PEFT."""

import warnings

import pytest


@pytest.fixture(scope="session")
def peft():
    """PEFT and torch, where they are installed."""
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft", reason="needs peft")
