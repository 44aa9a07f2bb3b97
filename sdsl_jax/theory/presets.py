"""Published laws, by name, with where they come from and where they hold.

Losses are in nats per token of each publication's own tokenizer and text. Do not mix two laws in one
computation without converting to bits per byte.
"""

from sdsl_jax.theory.laws import (
    About,
    AcceptanceLaw,
    AffinePlane,
    ChinchillaLaw,
    KaplanLaw,
    LossLaw,
)

# Over 400 models of 70M to over 16B parameters on 5B to 500B tokens (abstract of 2203.15556).
_CHINCHILLA_RUNS = (("params", 70e6, 16.1e9), ("tokens", 5e9, 500e9))

BESIROGLU = ChinchillaLaw(
    E=1.8172,
    A=482.01,
    B=2085.43,
    a=0.3478,
    b=0.3658,
    about=About(
        source="Besiroglu et al. 2024, arXiv 2404.10102: refit of the runs of Hoffmann et al.",
        params_count="total",
        text="MassiveText, 32k vocabulary",
        valid=_CHINCHILLA_RUNS,
        standard_error=(("E", 0.026), ("A", 125.0), ("B", 1293.0), ("a", 0.015), ("b", 0.021)),
        no_interval="only marginal standard errors are published, and A and a (B and b) are strongly correlated",
    ),
)

_NO_ERRORS = "no covariance of the coefficients is published"

PUBLISHED_LOSS_LAWS: dict[str, LossLaw] = {
    "besiroglu": BESIROGLU,
    "hoffmann": ChinchillaLaw(
        E=1.69,
        A=406.4,
        B=410.7,
        a=0.34,
        b=0.28,
        about=About(
            source="Hoffmann et al. 2022, arXiv 2203.15556: rounded coefficients of the text",
            params_count="total",
            text="MassiveText, 32k vocabulary",
            valid=_CHINCHILLA_RUNS,
            no_interval=_NO_ERRORS,
        ),
    ),
    "hoffmann_unrounded": ChinchillaLaw(
        E=1.6934,
        A=406.4,
        B=410.7,
        a=0.3392,
        b=0.2849,
        about=About(
            source="Hoffmann et al. 2022, arXiv 2203.15556: coefficients of the TeX source",
            params_count="total",
            text="MassiveText, 32k vocabulary",
            valid=_CHINCHILLA_RUNS,
            no_interval=_NO_ERRORS,
        ),
    ),
    "muennighoff": ChinchillaLaw(
        E=1.87,
        A=521.0,
        B=1488.0,
        a=0.353,
        b=0.353,
        about=About(
            source="Muennighoff et al. 2023, arXiv 2305.16264",
            params_count="total",
            text="C4",
            # The publication gives the upper ends: runs of up to 9B parameters and 900B tokens.
            valid=(("params", 0.0, 9e9), ("tokens", 0.0, 900e9)),
            no_interval=_NO_ERRORS,
        ),
    ),
    "kaplan": KaplanLaw(
        N_c=6.4e13,
        D_c=1.8e13,
        alpha_N=0.076,
        alpha_D=0.103,
        about=About(
            source="Kaplan et al. 2020, arXiv 2001.08361",
            params_count="non-embedding",
            text="WebText2, 50k vocabulary",
            # 768 to 1.5B non-embedding parameters, 22M to 23B tokens.
            valid=(("params", 768.0, 1.5e9), ("tokens", 22e6, 23e9)),
            no_interval=_NO_ERRORS,
        ),
    ),
}

PAPER_PLANE = AffinePlane(
    A=-0.0067,
    B=0.01297,
    C=0.642,
    about=About(
        source="arXiv 2603.11053",
        params_count="total",
        text="HellaSwag, perplexities measured on each model's own tokens",
        unit="probability",
        # The smallest and largest draft and target of the fit; the range of perplexities is not
        # published.
        valid=(("draft_params", 125e6, 4e9), ("target_params", 13e9, 110e9)),
        no_interval="R² and MSE of the fit are published, and no covariance of its coefficients",
        # As published; the pairs that they are of, and their number, are not.
        r_squared=0.602,
        mean_squared_error=0.00128,
    ),
)

PUBLISHED_ACCEPTANCE_LAWS: dict[str, AcceptanceLaw] = {"paper": PAPER_PLANE}
