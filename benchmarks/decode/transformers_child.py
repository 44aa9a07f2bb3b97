"""Hugging Face transformers in a process of its own, so that its threads and XLA's never share one.

Reads one JSON request per line on standard input and answers each with one JSON line on standard
output; everything that libraries print goes to standard error. Times are taken here, around
`generate` alone. Imports no jax.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.child import serve


class Child:
    """The models in this process and what can be asked of them; each method answers one kind of request."""

    def __init__(self) -> None:
        import torch
        import transformers

        self.torch = torch
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.models: dict[str, Any] = {}
        self.forwards = 0
        self.device = "cpu"

    def versions(self) -> dict[str, Any]:
        """Versions, and which devices there are."""
        import transformers

        return {
            "torch": self.torch.__version__,
            "transformers": transformers.__version__,
            "cuda": self.torch.cuda.is_available(),
            "threads": self.torch.get_num_threads(),
        }

    def load(self, draft: str, target: str, dtype: str, device: str) -> dict[str, Any]:
        """Loads both folders; counts the target's forward passes from then on."""
        from transformers import AutoModelForCausalLM

        self.device = device
        for name, folder in (("draft", draft), ("target", target)):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(self.torch, dtype))
            self.models[name] = model.eval().to(device)
            for parameter in model.parameters():
                # Loaded weights may lie in a mapped file, at any alignment; a copy lies in memory
                # like any other tensor.
                parameter.data = parameter.data.clone()
        self.models["target"].register_forward_hook(self._count)
        assistant = self.models["draft"].generation_config
        # A fixed lookahead: no schedule, and no early end of a draft when the draft is unsure.
        assistant.num_assistant_tokens_schedule = "constant"
        assistant.assistant_confidence_threshold = 0.0
        return {"classes": [type(self.models[name]).__name__ for name in ("draft", "target")]}

    def _count(self, *_) -> None:
        self.forwards += 1

    def threads(self, number: int) -> dict[str, Any]:
        """Sets the threads of torch's operators."""
        self.torch.set_num_threads(number)
        return {"threads": self.torch.get_num_threads()}

    def logits(self, model: str, tokens: list[list[int]]) -> dict[str, Any]:
        """Logits of every position."""
        with self.torch.no_grad():
            ids = self.torch.tensor(tokens, device=self.device)
            return {"logits": self.models[model](ids).logits.float().cpu().tolist()}

    def generate(
        self,
        prompts: list[list[int]],
        new_tokens: int,
        lookahead: int,
        seed: int,
        temperature: float,
    ) -> dict[str, Any]:
        """Samples `new_tokens` tokens per row without filters, or takes the likeliest ones at
        temperature 0; assisted if `lookahead` is above 0."""
        torch, target = self.torch, self.models["target"]
        ids = torch.tensor(prompts, device=self.device)
        how: dict[str, Any] = dict(max_new_tokens=new_tokens, use_cache=True, do_sample=False)
        if temperature:
            how |= dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
        if lookahead:
            how["assistant_model"] = self.models["draft"]
            self.models["draft"].generation_config.num_assistant_tokens = lookahead
        torch.manual_seed(seed)
        self.forwards = 0
        self._wait()
        began = time.perf_counter()
        out = target.generate(ids, attention_mask=torch.ones_like(ids), **how)
        self._wait()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": out.numel() - ids.numel(), "rounds": self.forwards}

    def _wait(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()


if __name__ == "__main__":
    serve(Child)
