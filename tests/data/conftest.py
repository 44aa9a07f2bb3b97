"""Tokenised corpora go to a folder of the test run instead of the user's cache."""

import pytest


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


# Of a module, so that tests of other folders in the same process keep the cache of the run.
@pytest.fixture(scope="module", autouse=True)
def cache(cache_home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        yield cache_home / "sdsl_jax" / "corpora"
