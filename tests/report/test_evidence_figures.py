import jinja2
import matplotlib.image
import pytest
from evidence_records import chain_study, evidence_section, law_study
from report_page import Page, assert_readable

from sdsl_jax.evidence import Evidence, StudyRecords, gather
from sdsl_jax.records import write_json
from sdsl_jax.report.evidence_figures import EVIDENCE_CAPTIONS, draw_evidence


def reread(study, folder) -> StudyRecords:
    """As the report reads them: through the file, where numbers that are not finite become null."""
    write_json(folder / "evidence.json", gather(study))
    return study.replaced(evidence=StudyRecords(folder).document("evidence", Evidence))


@pytest.fixture
def dependent(tmp_path) -> StudyRecords:
    return reread(chain_study(seed=1, persistence=0.3, samples=16, length=32), tmp_path)


@pytest.mark.slow
def test_figures_are_drawn_only_of_what_is_there(dependent, tmp_path):
    figures = tmp_path / "figures"
    draw_evidence(dependent, figures)
    assert {path.name for path in figures.iterdir()} == {"dependence.png", "dependence.pdf"}
    other = reread(
        law_study(temperatures=((0.0, 2.2, 1.2),), domains=(("far", 1.0, 0.5),), shift=0.1),
        tmp_path,
    )
    draw_evidence(other, figures)
    # What the new records do not hold is not left over from the old ones.
    assert {path.name for path in figures.iterdir()} == {"conditions.png", "conditions.pdf"}
    image = matplotlib.image.imread(figures / "conditions.png")
    assert image.shape[0] > 400
    assert (image[..., :3].std(axis=(0, 1)) > 0.05).all()
    section = evidence_section(other.document("evidence", Evidence), {"conditions": "AAAA"})
    for heading in ("temperature matter", "hold on other text", "perplexity alone"):
        assert heading in section
    assert EVIDENCE_CAPTIONS["conditions"].split(":")[0] in section
    assert_readable(Page(section))


@pytest.mark.slow
def test_the_section_shows_only_what_was_answered(dependent):
    section = evidence_section(dependent.document("evidence", Evidence), {})
    assert "For the sceptic" in section
    assert "persistent chain" in section
    assert "perplexity alone" not in section
    assert_readable(Page(section))
    assert evidence_section(Evidence(), {}).strip() == ""


@pytest.mark.slow
def test_a_misspelt_field_is_an_error(dependent):
    broken = Evidence(dependence={"n": 1})
    with pytest.raises(jinja2.UndefinedError):
        evidence_section(broken, {})
