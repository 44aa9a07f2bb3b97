"""Settings of a published file: reading them by type, and checking that none that affects the
computation is left over.

Every family has three lists: settings that its reader uses, settings that are refused unless their
value changes nothing, and settings that do not affect the logits. A setting on none of the lists is
named in a warning. In the namespace that a GGUF file reserves for its architecture, it is refused.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from sdsl_jax.errors import SdslError
from sdsl_jax.models.config import ModelConfig
from sdsl_jax.user_files import read_json_object

CONFIG = "config.json"
# The largest size that indices of 32 bits reach; no published model comes near it.
LARGEST = 2**31 - 1
_TOO_LARGE = 1e300
_LONGEST_NAME = 100
_MISSING: Any = object()


def shown(value: Any) -> str:
    """A value of a file for a message, shortened where it is long."""
    return reprlib.repr(value)


def printable(name: str) -> str:
    """A name from a file, for a message: as it is, unless it is long or has unprintable characters."""
    return name if name.isprintable() and len(name) <= _LONGEST_NAME else reprlib.repr(name)


class Fields:
    """The fields of one JSON object.

    Attributes:
      path: Path to the file, for messages.
      values: Fields as they were read.
    """

    def __init__(
        self,
        path: Path,
        values: dict[str, Any],
        prefix: str = "",
        names: Mapping[str, str] | None = None,
    ):
        """`names` are what the file itself calls fields that it names differently; they serve messages alone."""
        self.path, self.values, self._prefix, self._names = path, values, prefix, names or {}

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Reads a file.

        Raises:
          SdslError: The file cannot be read, or holds no JSON object.
        """
        return cls(path, read_json_object(path))

    def without(self, names: Sequence[str]) -> tuple[Fields, tuple[str, ...]]:
        """The fields without some of them, and the names of those that were left out."""
        dropped = tuple(sorted(set(names) & set(self.values)))
        values = {name: value for name, value in self.values.items() if name not in dropped}
        return Fields(self.path, values, self._prefix, self._names), dropped

    def name(self, name: str) -> str:
        """What the file calls a field."""
        return self._names.get(name, self._prefix + printable(name))

    def fail(self, name: str, wanted: str) -> NoReturn:
        """Raises `SdslError` about a field: what it is, and what it must be."""
        value = f"is {shown(self.values[name])}" if name in self.values else "is missing"
        raise SdslError(f"{self.name(name)} of {self.path} {value}; it must be {wanted}.")

    def _get(self, name: str, default: Any) -> Any:
        # Published files write null for what has its default.
        value = self.values.get(name)
        if value is None and default is _MISSING:
            self.fail(name, "given")
        return default if value is None else value

    def whole(self, name: str, default: int = _MISSING, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.fail(name, f"a whole number of at least {least}")
        if value > LARGEST:
            self.fail(name, f"at most {LARGEST:,}")
        return value

    def number(self, name: str, default: float = _MISSING) -> float:
        """A positive number."""
        value = self._get(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < _TOO_LARGE
        ):
            self.fail(name, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def choice(self, name: str, options: dict[str, Any], default: str) -> Any:
        """What an option stands for."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in options:
            self.fail(name, " or ".join(map(repr, options)))
        return options[value]

    def table(self, name: str) -> Fields | None:
        """An object within the object; None if there is none."""
        value = self._get(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(name, "an object")
        return Fields(self.path, value, f"{self.name(name)}.")

    def only(self, name: str, allowed: Sequence[Any], why: str) -> None:
        """Raises `SdslError` if a field has a value that this package does not compute."""
        if self.values.get(name) is not None and self.values[name] not in allowed:
            raise SdslError(
                f"{self.name(name)} of {self.path} is {shown(self.values[name])}; {why}."
            )


# Unknown settings that a warning names.
_NAMED = 12
# Values at which a setting changes nothing, or those that follow from the model's shape; null
# always is one.
Neutral = tuple[Any, ...] | Callable[[ModelConfig], tuple[Any, ...]]


class Settings(NamedTuple):
    """The settings of a family.

    Attributes:
      used: Settings that the family's function reads.
      neutral: Settings that are refused unless they have one of these values.
      irrelevant: Settings without effect on the logits.
      namespace: Prefix of settings that are refused if they are on no list; "" for none.
    """

    used: frozenset[str]
    neutral: dict[str, Neutral]
    irrelevant: frozenset[str]
    namespace: str = ""


def require_settings(fields: Fields, settings: Settings, config: ModelConfig) -> tuple[str, ...]:
    """Checks that no setting that affects the computation is left over.

    Args:
      fields: Settings of the file.
      settings: Lists of its family.
      config: What the family's function made of the settings.

    Returns:
      The settings that are on no list.

    Raises:
      SdslError: A setting has a value that is not neutral, or is unknown in the architecture's own
        namespace.
    """
    unknown = []
    for name, value in fields.values.items():
        if name in settings.used or name in settings.irrelevant or value is None:
            continue
        allowed, experts = settings.neutral.get(name), ""
        if allowed is not None:
            values = allowed(config) if callable(allowed) else allowed
            if any(_equal(value, neutral) for neutral in values):
                continue
            experts = (
                ": mixtures of experts are not read"
                if "expert" in name or name.startswith("moe_")
                else ""
            )
            refusal = f"which is not implemented{experts}; it must be {' or '.join(map(shown, values)) or 'absent'}"
        elif settings.namespace and name.startswith(settings.namespace):
            refusal = "a setting of the architecture that this package does not know"
        else:
            unknown.append(name)
            continue
        name = printable(name)
        # Without this setting the tensors of experts would be left over, and refused.
        vouch = (
            ""
            if experts
            else f" (--ignore-key {name} reads the model as if the file did not have it)"
        )
        raise SdslError(f"{name} of {fields.path} is {shown(value)}, {refusal}{vouch}.")
    return tuple(sorted(unknown))


def _equal(value: Any, neutral: Any) -> bool:
    if isinstance(value, bool) or isinstance(neutral, bool):
        return value is neutral
    if isinstance(value, int | float) and isinstance(neutral, int | float):
        # Files keep some of them in float32.
        return math.isclose(value, neutral, rel_tol=1e-6)
    return type(value) is type(neutral) and value == neutral


def unknown_warning(unknown: Sequence[str], file: Path) -> list[str]:
    """A warning about settings that are on no list; empty if there are none."""
    if not unknown:
        return []
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    named = ", ".join(map(printable, unknown[:_NAMED]))
    return [
        f"this package does not know some settings of {file}, and reads the model without them: {named}{more}."
    ]


def names(text: str) -> frozenset[str]:
    """The names in a text, separated by blanks."""
    return frozenset(text.split())


def _unless(allowed: Neutral, names: str) -> dict[str, Neutral]:
    """Settings that are refused unless they have one of these values."""
    return dict.fromkeys(names.split(), allowed)


# What files of all families may hold: about files, training, tasks, loading and generation.
_IRRELEVANT = names(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _from_model_config _name_or_path
    _output_attentions architectures attn_implementation auto_map bos_token_id chunk_size_feed_forward classifier_activation
    classifier_dropout custom_pipelines decoder_start_token_id dtype eos_token_id finetuning_task gradient_checkpointing
    head_dtype id2label initializer_range is_decoder keys_to_ignore_at_inference label2id max_sequence_length
    model_max_length model_type name_or_path num_labels output_attentions output_hidden_states output_past pad_token_id
    prefix problem_type return_dict sdsl_jax sep_token_id task_specific_params tf_legacy_loss tie_last_hidden_states
    tokenizer_class torch_dtype torchscript transformers_version unk_token_id unsloth_fixed unsloth_version use_bfloat16
    use_cache use_return_dict

    activation_dropout attention_dropout attn_pdrop dropout embd_pdrop embedding_dropout hidden_dropout layerdrop mlp_dropout
    resid_pdrop residual_dropout

    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
    min_length no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    target_lookbehind temperature top_k top_p typical_p
    """
)
# What would change the computation of any family, by the names that families outside this package
# give it.
_NEUTRAL: dict[str, Neutral] = {
    **_unless(
        (False,),
        """
        add_cross_attention alibi attention_sink bidirectional is_encoder_decoder parallel_attn qk_layernorm qk_norm
        rope_interleave rope_interleaved tie_encoder_decoder use_alibi use_bidirectional_attention use_mla use_mrope
        use_parallel_residual use_qk_norm
        """,
    ),
    **_unless(
        (0,),
        """
        attention_chunk_size attn_logit_softcapping final_logit_softcapping kv_lora_rank moe_intermediate_size
        n_routed_experts n_shared_experts no_rope_layer_interval num_experts num_experts_per_tok num_local_experts
        q_lora_rank
        """,
    ),
    **_unless((), "clip_qkv cross_attention_hidden_size moe_layer_freq scale_depth"),
    **_unless(
        (1,),
        """
        embedding_multiplier logit_scale logits_scaling partial_rotary_factor residual_multiplier rotary_pct scale_emb
        """,
    ),
    "attention_multiplier": lambda c: (c.head_dim**-0.5,),
    "attention_out_bias": lambda c: (c.out_bias,),
    "attn_temperature_tuning": (False, 0),
    "dim_model_base": lambda c: (c.width,),
    "is_causal": (True,),
    "mlp_bias": lambda c: (c.mlp_bias,),
    "no_rope_layers": ([],),
    "per_layer_config": ({},),
    "pruned_heads": ({},),
    "query_pre_attn_scalar": lambda c: (c.head_dim,),
    "rotary_dim": lambda c: (c.rotated or c.head_dim,),
}
_ROPE = names(
    "max_position_embeddings original_max_position_embeddings rope_parameters rope_scaling rope_theta"
)
_LLAMA = _ROPE | names(
    """
    head_dim hidden_act hidden_size intermediate_size layer_types num_attention_heads num_hidden_layers num_key_value_heads
    max_window_layers rms_norm_eps sliding_window tie_word_embeddings use_sliding_window vocab_size
    """
)
_LLAMA_IRRELEVANT = names("pretraining_tp")


def _head_size(c: ModelConfig) -> tuple[Any, ...]:
    return (c.head_dim,)


def _family(
    used: frozenset[str], neutral: dict[str, Neutral], irrelevant: frozenset[str]
) -> Settings:
    """The lists of a family. What its own class knows takes precedence over what names mean
    elsewhere.
    """
    elsewhere = {name: values for name, values in _NEUTRAL.items() if name not in used | irrelevant}
    return Settings(used, elsewhere | neutral, irrelevant | _IRRELEVANT)


HUGGING_FACE: dict[str, Settings] = {
    "llama": _family(
        _LLAMA | names("attention_bias mlp_bias"),
        {"qkv_bias": lambda c: (c.qkv_bias,)},
        _LLAMA_IRRELEVANT,
    ),
    "qwen2": _family(
        _LLAMA,
        {"qkv_bias": (True,)},
        # Its class has biases whatever this says.
        _LLAMA_IRRELEVANT | names("attention_bias"),
    ),
    "qwen3": _family(
        _LLAMA | names("attention_bias"),
        {"use_qk_norm": (True,), "qk_norm": (True,), "qk_layernorm": (True,)},
        _LLAMA_IRRELEVANT,
    ),
    "seed_oss": _family(
        _LLAMA | names("attention_bias attention_out_bias mlp_bias"), {}, _LLAMA_IRRELEVANT
    ),
    "opt": _family(
        names(
            """
            _remove_final_layer_norm activation_function do_layer_norm_before enable_bias ffn_dim hidden_size
            max_position_embeddings num_attention_heads num_hidden_layers tie_word_embeddings vocab_size word_embed_proj_dim
            """
        ),
        {"layer_norm_elementwise_affine": (True,)},
        names("init_std"),
    ),
    "gpt_neox": _family(
        _ROPE
        | names(
            """
            attention_bias hidden_act hidden_size intermediate_size layer_norm_eps num_attention_heads num_hidden_layers
            rotary_emb_base rotary_pct tie_word_embeddings use_parallel_residual vocab_size
            """
        ),
        {
            "head_dim": _head_size,
            "partial_rotary_factor": lambda c: (c.rotated / c.head_dim,),
            "sliding_window": (),
        },
        frozenset(),
    ),
    "gpt2": _family(
        names(
            """
            activation_function layer_norm_epsilon n_embd n_head n_inner n_layer n_positions tie_word_embeddings vocab_size
            hidden_size max_position_embeddings num_attention_heads num_hidden_layers
            """
        ),
        {
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
        names(
            """
            n_ctx reorder_and_upcast_attn summary_activation summary_first_dropout
            summary_last_dropout summary_proj_to_labels summary_type summary_use_proj
            """
        ),
    ),
}


# Of the settings that a GGUF file of the llama architecture keeps in its namespace.
_GGUF_NEUTRAL: dict[str, Neutral] = {
    **_unless(
        (0,),
        """
        attention.clamp_kqv attention.max_alibi_bias attn_logit_softcapping expert_count expert_shared_count
        expert_used_count final_logit_softcapping nextn_predict_layers rope.scaling.yarn_log_multiplier
        """,
    ),
    **_unless((0, 1), "embedding_scale logit_scale residual_scale"),
    **_unless(
        (1,),
        """
        rope.scaling.attn_factor rope.scaling.yarn_attn_factor rope.scaling.yarn_ext_factor
        """,
    ),
    "attention.causal": (True,),
    "attention.scale": lambda c: (0, c.head_dim**-0.5),
    "attention.sliding_window": lambda c: (0, c.max_positions),
    "attention.value_length": _head_size,
    "embedding_length_out": lambda c: (c.width,),
    "rope.dimension_count": _head_size,
    "use_parallel_residual": (False,),
}
GGUF_LLAMA = Settings(
    frozenset(
        f"llama.{name}"
        for name in names(
            """
            attention.head_count attention.head_count_kv attention.key_length attention.layer_norm_rms_epsilon block_count
            context_length embedding_length feed_forward_length rope.freq_base rope.scale_linear rope.scaling.factor
            rope.scaling.original_context_length rope.scaling.type rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
            vocab_size
            """
        )
    )
    | names(
        """
        general.alignment general.architecture tokenizer.chat_template tokenizer.ggml.add_bos_token
        tokenizer.ggml.add_eos_token tokenizer.ggml.bos_token_id tokenizer.ggml.eos_token_id tokenizer.ggml.merges
        tokenizer.ggml.model tokenizer.ggml.pre tokenizer.ggml.token_type tokenizer.ggml.tokens
        """
    ),
    {f"llama.{name}": allowed for name, allowed in _GGUF_NEUTRAL.items()}
    | {
        "general.type": ("model",),
        "split.count": (0, 1),
        "split.no": (0,),
        "tokenizer.ggml.add_sep_token": (False,),
        "tokenizer.ggml.add_space_prefix": (False,),
        "tokenizer.ggml.remove_extra_whitespaces": (False,),
        "tokenizer.ggml.suppress_tokens": ([],),
    },
    frozenset(
        f"llama.{name}"
        for name in names(
            "attention.layer_norm_epsilon pooling_type rope.scaling.finetuned tensor_data_layout"
        )
    )
    | frozenset(
        f"tokenizer.ggml.{name}"
        for name in names(
            """
            eom_token_id eot_token_id fim_mid_token_id fim_pad_token_id fim_pre_token_id fim_rep_token_id fim_sep_token_id
            fim_suf_token_id mask_token_id middle_token_id padding_token_id prefix_token_id scores seperator_token_id
            suffix_token_id token_type_count unknown_token_id
            """
        )
    )
    | names("split.tensors.count tokenizer.chat_templates tokenizer.huggingface.json"),
    namespace="llama.",
)
# Namespaces that describe the file: authors, licences, the calibration of a quantisation, templates
# by other names.
GGUF_DESCRIPTIONS = ("general.", "quantize.", "tokenizer.chat_template.")
