"""Exact acceptance of n-grams with a draft to fall back on."""

import numpy as np
import pytest

from sdsl_jax.decoding import NgramDraft
from sdsl_jax.measurement.hybrids import with_ngrams_first


def copies(text, longest, shortest, count):
    """What a round after a text copies from the latest earlier occurrence of its longest suffix."""
    for n in range(min(longest, len(text) - 1), shortest - 1, -1):
        for at in range(len(text) - 1, n - 1, -1):
            if text[at - n : at] == text[-n:]:
                grown = list(text)
                for k in range(count):
                    grown.append(grown[at + k])
                return grown[len(text) :]
    return None


@pytest.mark.parametrize(("of_a_head", "most"), [(False, None), (True, None), (False, 2)])
def test_each_draft_is_that_of_the_round_it_belongs_to(of_a_head, most):
    """Against a plain search after every token; drafts that would begin before the prompt's end are
    nobody's, and of a fallback of `most` drafts the others are never accepted."""
    random = np.random.default_rng(0)
    tokens, starts, new, drafts = random.integers(0, 4, (3, 20)), np.asarray([2, 5, 9]), 11, 3
    fallback = random.random((3, new, drafts) if of_a_head else (3, new))
    mixed = with_ngrams_first(fallback, NgramDraft(4, 3, 2), tokens, starts, drafts, most)
    seen = set()
    for row, begin in enumerate(starts):
        for t in range(new):
            copied = copies(tokens[row, : begin + t].tolist(), 3, 2, drafts)
            seen.add(copied is None)
            for k in range(min(drafts, new - t)):
                own = fallback[row, t + k, k] if of_a_head else fallback[row, t + k]
                if most is not None and k >= most:
                    own = 0.0
                if copied is not None:
                    own = copied[k] == tokens[row, begin + t + k]
                assert mixed[row, t + k, k] == own
    assert seen == {True, False}
