"""What to tell a serving engine about a chosen draft and lookahead, ready to paste.

Checked in November 2026 against:
  vLLM: docs/features/speculative_decoding/draft_model.md of its main branch; drafting by a model of
  its own came to the V1
    engine by pull request 24322 (versions up to 0.13 refuse it), and asks for the tensor
    parallelism of the target (`_raise_if_draft_tp_mismatch`, so in 0.20 and since). It drafts
    greedily unless `draft_sample_method` says otherwise (pull request 40269; in 0.26 and since).
  SGLang: docs/advanced_features/speculative_decoding.md; with a branching factor of 1, verification
  takes num-steps + 1 tokens. Transformers 4.45 to 5.17: the candidate generator reads the settings
  from the assistant's own generation config, and stops
    early below a confidence of 0.4 unless the threshold is 0.
"""

from __future__ import annotations

import functools
import json
import shlex
from typing import Any

_DRAFT, _TARGET = "path/to/draft", "path/to/target"

NOTES = (
    "vLLM and SGLang run the draft on all devices of the target, by tensor parallelism",
    "α is that of sampled drafts, Σ min(p, q): vLLM samples drafts with draft_sample_method probabilistic, SGLang takes the most "
    "likely token, which the target accepts with its own probability of it",
)

# Where several devices share the models.
_BY_LAYERS = 'Transformers with device_map="auto" puts whole layers on devices, one after another: the times here are not for it'
_ONE_ROW = (
    "Transformers speculates for one row at a time: its settings do not serve the batch of {} here"
)


def engine_settings(
    lookahead: int, devices: int, draft: str = "", target: str = "", batch: int = 1
) -> dict[str, Any]:
    """Settings for three engines.

    Args:
      lookahead: drafts per round, γ ≥ 1.
      devices: of the target.
      draft: path or name of the draft; a placeholder if empty.
      target: path or name of the target; a placeholder if empty.
      batch: rows that are decoded together.
    """
    draft, target = draft or _DRAFT, target or _TARGET
    # Names may hold blanks, quotes and $(...): the commands are quoted for a POSIX shell, and this
    # for Python.
    in_python = functools.partial(json.dumps, ensure_ascii=False)
    vllm = {
        "method": "draft_model",
        "model": draft,
        "num_speculative_tokens": lookahead,
        "draft_tensor_parallel_size": devices,
        "draft_sample_method": "probabilistic",
    }
    return {
        "vllm": {
            "speculative_config": vllm,
            "command": f"vllm serve {shlex.quote(target)} --tensor-parallel-size {devices} --speculative-config "
            f"{shlex.quote(json.dumps(vllm))}",
        },
        "sglang": {
            "command": f"python3 -m sglang.launch_server --model-path {shlex.quote(target)} --tp-size {devices} "
            f"--speculative-algorithm STANDALONE --speculative-draft-model-path {shlex.quote(draft)} "
            f"--speculative-num-steps {lookahead} --speculative-eagle-topk 1 --speculative-num-draft-tokens {lookahead + 1}",
        },
        "hugging_face": {
            "code": "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f"tokenizer = AutoTokenizer.from_pretrained({in_python(target)})\n"
            f'target = AutoModelForCausalLM.from_pretrained({in_python(target)}, dtype="auto", device_map="auto")\n'
            f'draft = AutoModelForCausalLM.from_pretrained({in_python(draft)}, dtype="auto", device_map="auto")\n'
            'inputs = tokenizer("a prompt", return_tensors="pt").to(target.device)\n'
            f"draft.generation_config.num_assistant_tokens = {lookahead}\n"
            'draft.generation_config.num_assistant_tokens_schedule = "constant"\n'
            "draft.generation_config.assistant_confidence_threshold = 0.0\n"
            "target.generate(**inputs, assistant_model=draft, do_sample=True)",
        },
        "placement": {
            "vllm": f"draft and target on all {devices} devices, tensor parallel",
            "sglang": f"draft and target on all {devices} devices, tensor parallel",
            "hugging_face": "whole layers on devices, one after another",
        },
        "notes": [
            *NOTES,
            *([_BY_LAYERS] if devices > 1 else []),
            *([_ONE_ROW.format(batch)] if batch > 1 else []),
        ],
    }
