import itertools

import matplotlib.image
import numpy as np
import pytest
from evidence_records import config, evidence_section, model, records
from report_page import Page, assert_charts, assert_readable

from sdsl_jax.evidence import Evidence
from sdsl_jax.evidence.clock import cells, clock
from sdsl_jax.fitting.law_files import read_fits
from sdsl_jax.hardware import HardwareFile
from sdsl_jax.records import RunRecord
from sdsl_jax.report.clock_figure import draw_clock
from sdsl_jax.report.evidence_charts import evidence_charts
from sdsl_jax.theory import tokens_per_round
from sdsl_jax.theory.hardware import Hardware, Load, Precision, Shape, pass_time, round_time

WORDS, CONTEXT = 256, 160
FLOAT = Precision(4.0, 4.0)
# Memory decides in single rows, and arithmetic in batches: speculation pays in the former and not
# in the latter.
MACHINE = Hardware(5e-6, 1e-6, 1e-7, 2e10, 2e10, 2.0, 5e-6)
ALPHA = {3_000: 0.5, 10_000: 0.62, 40_000: 0.75, 160_000: 0.8}
SHAPES = {
    3_000: (1, 16),
    10_000: (1, 29),
    40_000: (2, 41),
    160_000: (3, 67),
    900_000: (5, 122),
    3_000_000: (8, 177),
}


def _shape(params: int) -> Shape:
    layers, width = SHAPES[params]
    return Shape(float(params), layers, width, width, width, WORDS, 1.0)


def _record(params: int, role: str):
    layers, width = SHAPES[params]
    made = model(f"{role}-{params}", params, 2.5 - 0.1 * np.log10(params), role)
    return type(made)(
        **(vars(made) | {"layers": layers, "width": width, "params_total": params + WORDS * width})
    )


def _study(machine: Hardware = MACHINE, noise: float = 0.01, repetitions: int = 6, seed: int = 0):
    """Runs of a machine that follows `MACHINE`, and what is predicted by `machine`."""
    random = np.random.default_rng(seed)
    drafts, targets = (
        [_record(n, "draft") for n in ALPHA],
        [_record(n, "target") for n in (900_000, 3_000_000)],
    )
    runs = []

    def run(
        block: int,
        draft: str,
        target: str,
        lookahead: int,
        batch: int,
        seconds: float,
        tokens: float,
    ) -> None:
        for repetition in range(repetitions):
            took = 1000 * seconds * np.exp(noise * random.normal())
            runs.append(
                RunRecord(
                    *(
                        draft,
                        target,
                        lookahead,
                        batch,
                        block,
                        repetition,
                        took,
                        1000,
                        round(1000 * tokens),
                    ),
                    CONTEXT,
                    1.0,
                )
            )

    for block, (target, batch) in enumerate(itertools.product(targets, (1, 8, 64))):
        of_target = _shape(target.params_nonembedding)
        step = float(pass_time(MACHINE, of_target, FLOAT, Load(1.0, batch, CONTEXT)))
        run(block, "", target.model_id, 0, batch, step, batch)
        for draft, lookahead in itertools.product(drafts, (1, 2, 4, 8)):
            size = draft.params_nonembedding
            took = round_time(
                MACHINE, _shape(size), of_target, lookahead, batch, CONTEXT, FLOAT, FLOAT
            )
            tau = batch * float(tokens_per_round(ALPHA[size], float(lookahead)))
            run(block, draft.model_id, target.model_id, lookahead, batch, float(took.seconds), tau)
    # A law that gives each draft the acceptance that it has: 1 − α falls by a power of N between
    # neighbours, nearly.
    sizes, miss = np.log(list(ALPHA)), np.log(1 - np.asarray(list(ALPHA.values())))
    slope, level = np.polyfit(sizes, miss, 1)
    power = {
        "law": "power_law",
        "coefficients": {
            "scale": float(np.exp(level)),
            "exponent": float(-slope),
            "target_exponent": 0.0,
        },
        "draws": {},
    }
    chinchilla = {
        "law": "chinchilla",
        "coefficients": {"E": 1.0, "A": 1.0, "B": 1.0, "a": 0.1, "b": 0.1},
        "draws": {k: [1.0] for k in "EABab"},
    }
    power["draws"] = {k: [v] for k, v in power["coefficients"].items()}
    fits = {
        "loss_law": chinchilla,
        "acceptance_laws": [power],
        "hardware": {
            "coefficients": {
                k: v
                for k, v in MACHINE._asdict().items()
                if k not in ("link_bytes_per_second", "memory_bytes")
            },
            "precision": FLOAT._asdict(),
            "batch": 1,
            "context": CONTEXT,
            "verify_seconds_by_lookahead": {},
            "decode_seconds": {},
        },
        "shape_rule": {"aspect_ratio": 32.0, "vocab_size": float(WORDS), "context": 64.0},
    }
    device = HardwareFile("machine", machine, FLOAT, "invented", "a test", False)
    return records(
        config=config(),
        models=[*drafts, *targets],
        fits=read_fits(fits),
        runs=runs,
        hardware=device,
    )


@pytest.fixture(scope="module")
def found():
    return clock(_study())


@pytest.mark.slow
def test_a_machine_that_follows_its_model_is_predicted(found):
    """Errors are those of the noise (1%, over medians of six) and of a power law through four acceptances."""
    assert found.error.n == 2 * 4 * 4
    assert found.error_of_costs.median_absolute < 0.01
    assert found.error.median_absolute < 0.04
    assert found.error.rank_correlation > 0.97
    assert 0 < found.error.noise < 0.02
    assert found.mean_regret["calibrated"] < 0.02
    for row in found.targets:
        assert row.pays_measured
        assert row.pays_predicted
        # Half of the repetitions cannot judge the best to be better than it is, but for noise.
        assert all(value > -0.02 for value in row.regret.values())
    # What a policy forgoes is what its decoder lacks.
    assert found.mean_regret["random_draft"] > found.mean_regret["calibrated"] + 0.01


def test_measured_rates_are_ratios_within_a_repetition():
    study = _study(noise=0.0)
    cell = next(c for c in cells(study) if c.decoder.lookahead == 4 and c.decoder.batch == 1)
    assert cell.decoder.speedup == pytest.approx(cell.decoder.predicted_with_tokens, rel=1e-3)
    slow = [r for r in study.runs if r.repetition == 0]
    # A repetition in which everything takes twice as long changes nothing.
    doubled = [type(r)(**(vars(r) | {"seconds": 2 * r.seconds})) for r in slow]
    again = study.replaced(runs=[*doubled, *(r for r in study.runs if r.repetition)])
    assert next(
        c for c in cells(again) if c.decoder.lookahead == 4 and c.decoder.batch == 1
    ).rates == pytest.approx(cell.rates)


@pytest.mark.slow
def test_a_wrong_machine_is_found_out():
    """A machine without overheads and with endless arithmetic is not the one that was timed."""
    wrong = MACHINE._replace(
        pass_seconds=0.0, layer_seconds=0.0, token_seconds=0.0, round_seconds=0.0
    )
    errors = clock(_study(wrong._replace(flops_per_second=1e15))).error
    assert errors.median_absolute > 0.1


@pytest.mark.slow
def test_the_batch_at_which_it_stops_to_pay(found):
    for row in found.batches:
        assert [p.batch for p in row.points] == [1, 8, 64]
        assert 1 < row.pays_up_to_measured < 64
        assert row.pays_up_to_predicted == pytest.approx(row.pays_up_to_measured, rel=0.25)


def test_nothing_is_said_where_nothing_was_timed():
    study = _study()
    assert clock(study.replaced(runs=[])) is None
    assert clock(study.replaced(hardware=None)) is None


@pytest.mark.slow
def test_the_figure_and_the_section(found, tmp_path):
    evidence = Evidence(clock=found)
    assert draw_clock(records(evidence=evidence), tmp_path, "clock")
    image = matplotlib.image.imread(tmp_path / "clock.png")
    assert (image[..., :3].std(axis=(0, 1)) > 0.05).all()
    assert_charts(evidence_charts(records(evidence=evidence)))
    section = evidence_section(evidence, {"clock": "AAAA"})
    for text in ("On the clock", "Regret", "batch up to which speculation pays"):
        assert text in section
    assert_readable(Page(section))
