"""A whole run that several modules share."""

import pytest

from tests.training.runs import make_run
from tnt_jax.training import loop, setup


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces multiply_adds, which does not know TinyModel."""
    monkeypatch.setattr(setup, "multiply_adds", lambda model: 1000)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An undisturbed run of 20 steps -> (workdir, summary)."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "multiply_adds", lambda model: 1000)
        summary = loop.train(make_run(workdir))
    return workdir, summary
