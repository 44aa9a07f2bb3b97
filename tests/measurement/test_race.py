"""A race of a tiny study: who takes part, on which prompts, and who is judged."""

import dataclasses

import pytest

from sdsl_jax.config.measurement import DomainConfig, RaceConfig
from sdsl_jax.data import load_dataset
from sdsl_jax.data.domains import domain_prompts
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement import race_study
from sdsl_jax.measurement.race import racing
from sdsl_jax.progress import Silent
from sdsl_jax.records import read_table
from tests.conftest import tiny


def test_a_pattern_that_names_no_draft(measured_study):
    models = read_table(measured_study / "records", "models")
    config = dataclasses.replace(tiny(), race=RaceConfig(drafts=("*",)))
    assert {m.role for m in racing(config, models)} == {"draft"}
    config = dataclasses.replace(tiny(), race=RaceConfig(drafts=("head-*",)))
    with pytest.raises(SdslError, match="names none of draft-"):
        racing(config, models)
    with pytest.raises(SdslError, match=r'holds "ngram", but race.ngram_first has no n except 0'):
        RaceConfig(drafts=("ngram",))


def test_prompts_of_a_domain_are_the_first_tokens_of_its_documents(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(f'{{"text": "{letter * 20}"}}\n' for letter in "abcd") + '{"text": "e"}\n'
    )
    dataset, domain = load_dataset(tiny().data), DomainConfig("rows", str(path))
    rows = domain_prompts(domain, dataset, 4, 12)
    assert [bytes(row.astype("uint8")) for row in rows] == [c.encode() * 12 for c in "abcd"]
    with pytest.raises(SdslError, match="holds 4 documents of 12 tokens or more; 5 are needed"):
        domain_prompts(domain, dataset, 5, 12)


@pytest.mark.slow
def test_the_winner_is_judged_on_other_prompts(measured_study, tmp_path):
    models = read_table(measured_study / "records", "models")
    drafts = [m.model_id for m in models if m.role == "draft"][:1]
    config = dataclasses.replace(
        tiny(),
        race=RaceConfig(
            drafts=(*drafts, "ngram"),
            lookaheads=(1, 2),
            ngram_first=(0, 2),
            temperatures=(0.0, 1.0),
            choosing_prompts=2,
            prompts=4,
        ),
    )
    rows = race_study(config, load_dataset(config.data), models, measured_study, Silent())
    for temperature in (0.0, 1.0):
        choosing, judging = (
            [r for r in rows if (r.temperature, r.part) == (temperature, part)]
            for part in ("choosing", "judging")
        )
        every = {(r.draft_id, r.lookahead, r.ngram) for r in choosing}
        assert every == {("", 0, 0)} | {(drafts[0], g, n) for g in (1, 2) for n in (0, 2)} | {
            ("ngram", g, 2) for g in (1, 2)
        }
        speed = {
            each: sum(r.tokens for r in choosing if (r.draft_id, r.lookahead, r.ngram) == each)
            / sum(r.seconds for r in choosing if (r.draft_id, r.lookahead, r.ngram) == each)
            for each in every - {("", 0, 0)}
        }
        judged = {(r.draft_id, r.lookahead, r.ngram) for r in judging}
        assert judged == {("", 0, 0), max(speed, key=speed.__getitem__)}
        assert len(judging) == 4 * 2
        assert {r.prompt for r in judging} == set(range(4))
        # A plain step emits one token.
        assert all(r.tokens == r.rounds for r in rows if not r.draft_id)
