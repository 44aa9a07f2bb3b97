"""Makes the folders beside this file: small random checkpoints of published families, written by
Hugging Face transformers, each with reference.npz: token ids, the float32 logits that transformers
gives for them, and its greedy continuation.

    python tests/checkpoints/published/make.py            # needs torch and transformers; see the extra "bench" of the project

The tests of the project read the folders and need neither.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
VOCAB, LENGTH, ROWS, PROMPT, NEW = 53, 24, 3, 7, 12


class Case(NamedTuple):
    """A checkpoint: the family, what its configuration sets, and how it is saved."""

    family: str
    settings: dict[str, Any]
    dtype: str = "float32"
    shards: str = "5GB"
    bare: bool = False


_LLAMA = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
)
_OPT = dict(
    hidden_size=24,
    ffn_dim=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=32,
)
_NEOX = dict(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    layer_norm_eps=1e-5,
)
_LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
_PARTIAL = dict(rope_type="default", rope_theta=1e4)
_YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16)

CASES = {
    "opt": Case("opt", _OPT),
    # As OPT-350M: norms after the residual stream, a smaller embedding, no norm at the end.
    "opt-post-norm": Case("opt", _OPT | dict(do_layer_norm_before=False, word_embed_proj_dim=16)),
    "opt-odd-heads": Case("opt", _OPT | dict(hidden_size=20)),
    "opt-without-biases": Case("opt", _OPT | dict(enable_bias=False, activation_function="gelu")),
    "llama-2": Case("llama", _LLAMA | dict(num_key_value_heads=4)),
    "llama-3": Case("llama", _LLAMA | dict(rope_parameters=_LLAMA3, max_position_embeddings=128), shards="12KB"),
    "llama-biases": Case("llama", _LLAMA | dict(attention_bias=True, mlp_bias=True, head_dim=10)),
    "llama-linear": Case(
        "llama", _LLAMA | dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0))
    ),
    "llama-bfloat16": Case("llama", _LLAMA | dict(tie_word_embeddings=True), dtype="bfloat16"),
    "smollm2": Case("llama", _LLAMA | dict(num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True)),
    "qwen2": Case("qwen2", _LLAMA | dict(tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen2-untied-yarn": Case("qwen2", _LLAMA | dict(rope_parameters=_YARN, max_position_embeddings=64), shards="12KB"),
    "qwen3": Case("qwen3", _LLAMA | dict(head_dim=8, tie_word_embeddings=True)),
    "qwen3-untied": Case("qwen3", _LLAMA | dict(head_dim=6, attention_bias=True)),
    "seed-oss": Case("seed_oss", _LLAMA | dict(head_dim=8)),
    "pythia": Case("gpt_neox", _NEOX | dict(rope_parameters=_PARTIAL | dict(partial_rotary_factor=0.25))),
    "neox-sequential": Case(
        "gpt_neox",
        _NEOX | dict(use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True)
        | dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=1.0)),
    ),
    "gpt2": Case("gpt2", dict(n_embd=24, n_layer=2, n_head=4, n_positions=32)),
    "gpt2-bare": Case("gpt2", dict(n_embd=20, n_layer=2, n_head=4, n_positions=32, n_inner=36), bare=True),
}  # fmt: skip


def build(case: Case, seed: int):
    """A random model in which every parameter shows in the logits."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = (
        dict(vocab_size=VOCAB, bos_token_id=None, eos_token_id=None, pad_token_id=None)
        | case.settings
    )
    model = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model(case.family, **settings))
        .eval()
        .float()
    )
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(
                    noise
                    * (
                        0.7
                        if "emb" in name or "wte" in name or "wpe" in name
                        else parameter.shape[-1] ** -0.5
                    )
                )
    return model.to(getattr(torch, case.dtype))


def reference(folder: Path, seed: int) -> dict[str, np.ndarray]:
    """Ids, logits and a greedy continuation of a saved checkpoint, all in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = np.random.default_rng(seed).integers(0, VOCAB, (ROWS, LENGTH))
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)).logits.numpy()
        prompt = torch.from_numpy(ids[:, :PROMPT])
        continued = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
        ).numpy()
    return {"ids": ids.astype(np.int32), "logits": logits, "continued": continued.astype(np.int32)}


def make(name: str, folder: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes a case's checkpoint and returns its reference."""
    case = CASES[name]
    model = build(case, seed)
    (model.base_model if case.bare else model).save_pretrained(folder, max_shard_size=case.shards)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return reference(folder, seed)


def main() -> None:
    """Writes every folder anew."""
    for name in CASES:
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        found = make(name, folder)
        np.savez_compressed(folder / "reference.npz", **found)
        print(name, np.abs(found["logits"]).max(), sorted(p.name for p in folder.iterdir()))


if __name__ == "__main__":
    main()
