"""No setting of a published file that bears on the computation is left over: each is used, neutral, irrelevant or refused."""

import json
import re
from pathlib import Path

import pytest

from sdsl_jax.checkpoints.interop.checkpoint import read_settings
from sdsl_jax.checkpoints.interop.families import FAMILIES
from sdsl_jax.checkpoints.interop.settings import GGUF_LLAMA, HUGGING_FACE, Fields, unknown_warning
from sdsl_jax.errors import SdslError

FOLDER = Path(__file__).parent / "published"
# A config.json of every family, as transformers writes it.
WRITTEN = {
    "gpt2": "gpt2",
    "gpt_neox": "pythia",
    "llama": "llama-3",
    "opt": "opt",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "seed_oss": "seed-oss",
}
families = pytest.mark.parametrize("family", sorted(FAMILIES))


def written(family: str) -> dict:
    return json.loads((FOLDER / WRITTEN[family] / "config.json").read_text())


def read(values: dict):
    return read_settings(Fields(Path("config.json"), values))


def sentence(values: dict) -> str:
    """Why the values are refused; empty where they are read."""
    try:
        read(values)
    except SdslError as error:
        return str(error)
    return ""


def test_every_family_has_lists_that_do_not_overlap():
    assert set(HUGGING_FACE) == set(FAMILIES) == set(WRITTEN)
    for settings in (*HUGGING_FACE.values(), GGUF_LLAMA):
        assert not settings.used & settings.irrelevant
        assert not settings.used & set(settings.neutral)
        assert not settings.irrelevant & set(settings.neutral)


@families
def test_every_setting_at_another_than_its_neutral_value_is_refused_by_name(family):
    values = written(family)
    _, config, unknown = read(values)
    assert unknown == ()
    for name, neutral in HUGGING_FACE[family].neutral.items():
        allowed = neutral(config) if callable(neutral) else neutral
        for value in (*allowed, None):
            assert read(values | {name: value})[1] == config, (name, value)
        for other in (
            0.37,
            17,
            "other",
            [3],
            *(not value for value in allowed if isinstance(value, bool)),
        ):
            with pytest.raises(
                SdslError, match=rf"{name}.* is {re.escape(repr(other))}|{name} is {other}"
            ):
                read(values | {name: other})


@families
def test_a_reader_looks_at_what_is_listed_as_used_and_at_nothing_else(family):
    class Watched(dict):
        seen: set

        def get(self, name, default=None):
            self.seen.add(name)
            return super().get(name, default)

        def __getitem__(self, name):
            self.seen.add(name)
            return super().__getitem__(name)

        def __or__(self, other):
            both = Watched(super().__or__(other))
            both.seen = self.seen
            return both

    values = Watched(written(family) | {"sliding_window": 2**20, "use_sliding_window": True})
    values.pop("layer_types", None)
    values.seen = set()
    FAMILIES[family].config(Fields(Path("config.json"), values))
    settings = HUGGING_FACE[family]
    assert settings.used <= values.seen <= settings.used | set(settings.neutral)


@families
def test_null_stands_for_a_default_and_wrong_kinds_give_a_sentence(family):
    values = written(family)
    for name in HUGGING_FACE[family].used:
        for wrong in (
            "x",
            [],
            {},
            [None],
            {"x": {}},
            -1,
            0,
            1.5,
            10**400,
            1e308,
            float("nan"),
            True,
            [[]],
        ):
            refusal = sentence(values | {name: wrong})
            assert not refusal or ("config.json" in refusal and len(refusal) < 600)
        if name == "head_dim" and family == "seed_oss":
            continue  # its class tells null and absent apart
        absent = {key: value for key, value in values.items() if key != name}
        assert sentence(absent).split(" of ")[0] == sentence(absent | {name: None}).split(" of ")[0]
        assert sentence(absent) or read(absent)[1] == read(absent | {name: None})[1]


def test_a_missing_default_is_that_of_the_family():
    window = {"use_sliding_window": True, "sliding_window": 8, "layer_types": None}
    assert read(written("qwen2") | window | {"max_window_layers": None})[1].layers == 2
    with pytest.raises(SdslError, match=r"sliding_window of .* is 8"):
        read(written("qwen2") | window | {"max_window_layers": 1})
    with pytest.raises(SdslError, match=r"sliding_window of .* is 8"):
        read(written("llama") | {"sliding_window": 8})
    assert (
        read(written("llama") | {"sliding_window": 8, "use_sliding_window": False})[1].layers == 2
    )


@pytest.mark.parametrize(
    ("kind", "family"), [("yarn", "qwen2"), ("yarn", "gpt_neox"), ("llama3", "llama")]
)
def test_the_length_before_scaling_may_stand_beside_the_table(kind, family):
    """As transformers reads it; a table without it falls back on the announced length."""
    corners = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    table = {"rope_type": kind, "factor": 4.0, **corners}
    values = written(family) | {"max_position_embeddings": 128, "rope_parameters": table}
    for beside, within, expected in (
        (None, None, 128),
        (16, None, 16),
        (None, 32, 32),
        (16, 16, 16),
    ):
        lengths = {"original_max_position_embeddings": within}
        _, config, unknown = read(
            values
            | {"original_max_position_embeddings": beside, "rope_parameters": table | lengths}
        )
        assert (config.rope_scaling.original_positions, unknown) == (expected, ())
    lengths = {
        "original_max_position_embeddings": 16,
        "rope_parameters": table | {"original_max_position_embeddings": 32},
    }
    assert "is 16; rope_parameters.original_max_position_embeddings is 32" in sentence(
        values | lengths
    )
    # Other kinds of scaling do not ask.
    linear = {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0},
        "original_max_position_embeddings": 7,
    }
    assert read(values | linear)[2] == ()


def test_names_that_transformers_also_takes_for_those_of_gpt2():
    values = written("gpt2")
    config = read(values)[1]
    values["hidden_size"] = values["n_embd"]
    assert read(values)[1] == config
    del values["n_embd"]
    assert read(values)[1] == config
    with pytest.raises(SdslError, match=r"n_embd of .* is 20; hidden_size beside it is another"):
        read(values | {"n_embd": 20})


@pytest.mark.parametrize("name", ["is_causal", "use_bidirectional_attention", "bidirectional"])
def test_attention_to_later_positions_is_refused(name):
    """Models of embeddings are published in these families with it."""
    later = name != "is_causal"
    with pytest.raises(SdslError, match=rf"{name} of config.json is {later}"):
        read(written("qwen2") | {name: later})
    assert read(written("qwen2") | {name: not later})[2] == ()


def test_what_nobody_knows_is_named_once():
    values = written("llama") | {
        "my_gate": 1,
        "my_scale": 2.5,
        "absent": None,
        "auto_map": {"AutoModel": "m.M"},
    }
    values["rope_parameters"] = values["rope_parameters"] | {"spiral": 2}
    values["architectures"] = ["LlamaForTwoHeads"]
    unknown = read(values)[2]
    assert unknown == ("my_gate", "my_scale", "rope_parameters.spiral", "architectures", "auto_map")
    (sentence,) = unknown_warning(unknown, Path("m/config.json"))
    assert all(name in sentence for name in (*unknown, "m/config.json"))
    assert unknown_warning((), Path("m/config.json")) == []
    (sentence,) = unknown_warning([f"key_{i}" * 50 for i in range(40)], Path("c"))
    assert "and 28 more" in sentence
    assert len(sentence) < 1000
    assert "\n" not in unknown_warning(["a\nb"], Path("c"))[0]


@pytest.mark.slow
@families
def test_every_attribute_of_the_class_in_transformers_is_on_a_list(family):
    transformers = pytest.importorskip("transformers")
    settings = HUGGING_FACE[family]
    config = transformers.AutoConfig.for_model(family)
    listed = settings.used | settings.irrelevant | set(settings.neutral)
    assert set(config.to_dict()) <= listed
    assert set(config.attribute_map) <= listed
    assert (
        set(transformers.GenerationConfig._get_default_generation_params()) <= settings.irrelevant
    )
    # Its defaults are those that files leave out: every one of them is read.
    small = {
        k: v
        for k, v in written(family).items()
        if k in settings.used and k not in ("rope_parameters", "layer_types")
    }
    read(config.to_dict() | {"rope_parameters": None, "dtype": None} | small)


def test_experts_are_refused_and_cannot_be_vouched_for():
    with pytest.raises(
        SdslError,
        match=r"num_experts of .* is 4, .* mixtures of experts are not read; it must be 0\.$",
    ):
        read(written("llama") | {"num_experts": 4})
