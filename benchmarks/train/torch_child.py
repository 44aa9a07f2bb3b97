"""The same Transformer and the same training step in PyTorch, in a process of its own. Imports no
jax.

Written as one would write it in PyTorch: fused attention, fused norms and cross-entropy where
PyTorch has them, the fused AdamW.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.child import serve


class Block(nn.Module):
    """Attention with rotary positions and qk-norm, and a SwiGLU MLP, each behind an RMSNorm."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            shape["heads"],
            shape["kv_heads"],
            shape["head_dim"],
        )
        width, hidden, size = shape["width"], shape["hidden"], self.head_dim
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * size, bias=False)
        self.out = nn.Linear(self.heads * size, width, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(size, eps=1e-6), nn.RMSNorm(size, eps=1e-6)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x, cos, sin):
        """The residual stream after the block."""
        B, T, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(B, T, -1, self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q, k = (
            rotate(n(y), cos, sin).transpose(1, 2)
            for n, y in ((self.query_norm, q), (self.key_norm, k))
        )
        mixed = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotate(x, cos, sin):
    """Rotary positions on [B, T, N, H]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Transformer(nn.Module):
    """Token ids to logits, with tied embeddings."""

    def __init__(self, shape: dict[str, Any], length: int):
        super().__init__()
        self.scale = shape["width"] ** 0.5
        self.embedding = nn.Embedding(shape["vocab_size"], shape["width"])
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape["layers"]))
        self.final_norm = nn.RMSNorm(shape["width"], eps=1e-6)
        half = shape["head_dim"] // 2
        angles = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None], persistent=False)

    def forward(self, tokens):
        """Logits of the next token."""
        x = self.embedding(tokens) * self.scale
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(self.final_norm(x), self.embedding.weight)


class Child:
    """A model and its optimiser; each method answers one kind of request."""

    def versions(self) -> dict[str, Any]:
        """Version and threads."""
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def load(
        self, shape: dict[str, Any], recipe: dict[str, float], weights: str, batches: str
    ) -> dict[str, Any]:
        """Builds the model with the given weights, an .npz by parameter name, and reads the batches, an .npy."""
        self.recipe = recipe
        self.batches = torch.from_numpy(np.load(batches)).long()
        torch.manual_seed(0)
        self.model = Transformer(shape, self.batches.shape[-1] - 1)
        given = np.load(weights)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                value = given[name]
                parameter.copy_(
                    torch.from_numpy(
                        value.T if parameter.ndim == 2 and "embedding" not in name else value
                    )
                )
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        scales = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": recipe["weight_decay"]},
            {"params": scales, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=recipe["learning_rate"],
            betas=(recipe["adam_b1"], recipe["adam_b2"]),
            eps=1e-8,
            fused=True,
        )
        self.run = self.objective
        return {"parameters": sum(p.numel() for p in self.model.parameters())}

    def objective(self, tokens):
        """Cross-entropy plus z-loss, and cross-entropy."""
        logits = self.model(tokens[:, :-1]).flatten(0, 1)
        loss = F.cross_entropy(logits, tokens[:, 1:].flatten())
        return loss + self.recipe["z_loss"] * logits.logsumexp(-1).square().mean(), loss

    def compile(self) -> dict[str, Any]:
        """Switches to `torch.compile`; the first step after it compiles."""
        self.run = torch.compile(self.objective)
        return self.steps(0, 2)

    def steps(self, first: int, count: int) -> dict[str, Any]:
        """Takes steps on the batches from number `first` on; returns seconds and the loss of each."""
        losses = []
        began = time.perf_counter()
        for i in range(first, first + count):
            self.optimizer.zero_grad(set_to_none=True)
            objective, loss = self.run(self.batches[i % len(self.batches)])
            objective.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe["clip_norm"])
            self.optimizer.step()
            losses.append(loss.detach())
        seconds = time.perf_counter() - began
        found = [float(loss) for loss in losses]
        assert all(map(math.isfinite, found))
        return {"seconds": seconds, "losses": found}

    def matmul_peak(self) -> dict[str, Any]:
        """FLOP/s of a large float32 product."""
        a = torch.randn(1024, 1024)
        best = math.inf
        for _ in range(20):
            began = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - began)
        return {"flops_per_second": 2 * 1024**3 / best}


if __name__ == "__main__":
    serve(Child)
