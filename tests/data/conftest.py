"""Tokenised corpora go to a folder of the test run instead of the user's cache."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "sdsl_jax" / "corpora"
