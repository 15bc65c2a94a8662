"""A whole run that several modules look at."""

import pytest

from tests.training.runs import make_run
from tnt_jax.training import loop, setup


@pytest.fixture
def stand_in(monkeypatch):
    """The model here has no formula for its multiply-adds."""
    monkeypatch.setattr(setup, "multiply_adds", lambda model: 1000)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of 20 steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "multiply_adds", lambda model: 1000)
        summary = loop.train(make_run(workdir))
    return workdir, summary
