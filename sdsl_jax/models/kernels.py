"""Operations whose automatic gradients would be slow, with gradients written by hand.

With them a training step on a CPU is no slower than the same model in PyTorch (`python -m
benchmarks.train`). Each is tested against its plain formula and that formula's automatic gradient.
They have no forward mode (`jax.jvp`).

Suffixes of locals are those of `transformer`, but N counts rows × key-value heads, and M the rows
of a flat matrix.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdsl_jax.errors import require
from sdsl_jax.models.config import RopeScaling
from sdsl_jax.models.small_matmul import serves, small_matmul
from sdsl_jax.models.weights import Int8Matrix, Matrix

# Queries are taken in blocks, each against the keys that it can see, so that of what lies above the
# diagonal only half a block is computed: at least this many queries at once, and at most so many
# blocks.
_QUERY_BLOCK, _MOST_BLOCKS = 64, 8


def _cuts(sizes: tuple[int, ...]) -> list[int]:
    return np.cumsum(sizes)[:-1].tolist()


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: Float[Array, "... D"], weight: Matrix, sizes: tuple[int, ...]) -> tuple[Array, ...]:
    """x · weight for weights [D, F], its last axis cut into parts of the given sizes.

    Left to itself, the CPU compiler joins the gradients of the parts into one array and transposes
    the larger operand of the weight's gradient before it multiplies, which takes twice as long.
    """
    return tuple(jnp.split(_times(x, weight), _cuts(sizes), axis=-1))


def _times(x: Array, weight: Matrix, transposed: bool = False) -> Array:
    """x · weight, or x · weightᵀ, by the product that is fastest for so many rows."""
    if serves(x, weight):
        y_MF = small_matmul(x.reshape(-1, x.shape[-1]), weight, transposed)
        return y_MF.reshape(*x.shape[:-1], -1)
    if isinstance(weight, Int8Matrix):
        values = weight.values.astype(x.dtype)
        y = jnp.matmul(
            x, values.T if transposed else values, preferred_element_type=weight.scales.dtype
        )
        return (y * along_last(weight.scales, y)).astype(x.dtype)
    return x @ (weight.T if transposed else weight)


def logits(x: Float[Array, "... D"], table: Matrix, tied: bool) -> Float[Array, "... V"]:
    """Logits of the vocabulary.

    Args:
      x: Activations after the last norm.
      table: The embedding, [V, D], where it is the head too; otherwise the head, [D, V].
      tied: Which of the two.
    """
    return _times(x, table, tied)


def _linear_forward(x, weight, sizes):
    require(
        not isinstance(weight, Int8Matrix),
        "weights stored as int8 have no gradient; load the model without that to differentiate it.",
    )
    return linear(x, weight, sizes), (x, weight)


def _linear_backward(sizes, saved, gradients):
    x, weight = saved
    x_MD, *gradients_MF = jax.lax.optimization_barrier(
        [y.reshape(-1, y.shape[-1]) for y in (x, *gradients)]
    )
    parts_DF = jnp.split(weight, _cuts(sizes), axis=-1)
    dx_MD = functools.reduce(jnp.add, [g_MF @ w_DF.T for g_MF, w_DF in zip(gradients_MF, parts_DF)])
    return dx_MD.reshape(x.shape), jnp.concatenate(
        [x_MD.T @ g_MF for g_MF in gradients_MF], axis=-1
    )


linear.defvjp(_linear_forward, _linear_backward)


def along_last(vector: Array, like: Array) -> Array:
    """A vector with as many axes as `like`, so that it multiplies or shifts its last axis."""
    return jnp.expand_dims(vector, tuple(range(like.ndim - 1)))


def rotary_tables(
    positions: Array, dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Array, Array]:
    """Cosines and sines of position · θ^(−2i/R) (RoFormer, 2104.09864), float32 [..., R/2] for
    positions [...].

    Args:
      positions: Positions of the tokens.
      dim: R, the number of entries of a head that are rotated.
      theta: Base θ.
      scaling: Change of the frequencies.
    """
    half = dim // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    factor = 1.0
    if scaling is not None:
        frequencies, factor = _scaled(frequencies, theta, scaling), scaling.attention_factor
    angles = positions[..., None].astype(jnp.float32)
    angles = angles * along_last(frequencies, angles)
    if factor == 1.0:
        return jnp.cos(angles), jnp.sin(angles)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def _scaled(frequencies: Array, theta: float, scaling: RopeScaling) -> Array:
    """Frequencies between their original values and those divided by `factor`; see `RopeScaling`."""
    half = len(frequencies)
    kept: Array | float
    if scaling.kind == "linear":
        kept = 0.0
    elif scaling.kind == "llama3":
        turns = scaling.original_positions * frequencies / (2 * np.pi)
        kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    else:

        def index(turns: float) -> float:
            """Of the frequency that turns so often within the original length."""
            return half * np.log(scaling.original_positions / (2 * np.pi * turns)) / np.log(theta)

        first = max(np.floor(index(scaling.high)), 0.0)
        last = min(np.ceil(index(scaling.low)), 2 * half - 1.0)
        kept = 1 - jnp.clip((jnp.arange(half) - first) / max(last - first, 1e-3), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


@jax.custom_vjp
def rotate(
    x: Float[Array, "... H"], cos: Float[Array, "... R/2"], sin: Float[Array, "... R/2"]
) -> Float[Array, "... H"]:
    """Rotates the pair (i, i + R/2) of every head by its angle, and leaves what is beyond its first
    R entries.

    The gradient is the rotation back; the angles get none.
    """
    half, rest = cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]
    # (−b, a) from (a, b) by a product with zeros and ones: exact, and what remains is contiguous
    # arithmetic, which a concatenation inside of it would make eight times slower.
    swap = np.pad(np.kron([[0, 1], [-1, 0]], np.eye(half)), ((0, rest), (0, rest))).astype(x.dtype)
    turned = jnp.matmul(x, swap, precision="highest")

    def widened(y: Array, filled: float) -> Array:
        pieces = [y, y] if not rest else [y, y, jnp.full((*y.shape[:-1], rest), filled, y.dtype)]
        return jnp.concatenate(pieces, axis=-1).astype(x.dtype)

    return x * widened(cos, 1.0) + turned * widened(sin, 0.0)


def _rotate_forward(x, cos, sin):
    return rotate(x, cos, sin), (cos, sin)


def _rotate_backward(saved, gradient):
    cos, sin = saved
    return rotate(gradient, cos, -sin), jnp.zeros_like(cos), jnp.zeros_like(sin)


rotate.defvjp(_rotate_forward, _rotate_backward)


def attend(
    q: Float[Array, "N G T H"], k: Float[Array, "N H T"], v: Float[Array, "N T H"]
) -> Float[Array, "N G T H"]:
    """Causal attention by the fused kernel of the device where there is one for these types, else by `causal_attention`."""
    if jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
        return _fused_attention(q, k, v, "cudnn")
    return causal_attention(q, k, v)


def _fused_attention(q, k, v, implementation: Literal["xla", "cudnn"]):
    q_NTGH, k_NT1H, v_NT1H = (
        q.transpose(0, 2, 1, 3),
        k.transpose(0, 2, 1)[:, :, None],
        v[:, :, None],
    )
    out_NTGH = jax.nn.dot_product_attention(
        q_NTGH, k_NT1H, v_NT1H, scale=1.0, is_causal=True, implementation=implementation
    )
    return out_NTGH.transpose(0, 2, 1, 3)


@jax.custom_vjp
def causal_attention(
    q: Float[Array, "N G T H"], k: Float[Array, "N H T"], v: Float[Array, "N T H"]
) -> Float[Array, "N G T H"]:
    """softmax(q · k, causal) · v, for queries that are scaled already; G query heads share a
    key-value head.

    Scores are float32 at least. The weights are kept for the gradient, T²/2 numbers per query head;
    `remat` of whole blocks saves them where memory is short.
    """
    return _attention_forward(q, k, v)[0]


def _blocks(length: int) -> list[tuple[int, int]]:
    size = max(_QUERY_BLOCK, -(-length // _MOST_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _attention_forward(q, k, v):
    N, G, T, H = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    outs, saved = [], []
    for start, end in _blocks(T):
        q_NQH = q[:, :, start:end].reshape(N, -1, H)
        scores_NQS = jnp.einsum("nqh,nhs->nqs", q_NQH, k[:, :, :end], preferred_element_type=wide)
        hidden_QS = np.tile(np.arange(end)[None, :] > np.arange(start, end)[:, None], (G, 1))
        scores_NQS = jnp.where(hidden_QS, -jnp.inf, scores_NQS)
        weights_NQS = jnp.exp(scores_NQS - scores_NQS.max(axis=-1, keepdims=True))
        total_NQ1 = weights_NQS.sum(axis=-1, keepdims=True).astype(v.dtype)
        weights_NQS = weights_NQS.astype(v.dtype)
        # The division comes after the product: T/H times fewer of them.
        out_NQH = jnp.einsum("nqs,nsh->nqh", weights_NQS, v[:, :end]) / total_NQ1
        outs.append(out_NQH.reshape(N, G, -1, H))
        saved.append((q_NQH, weights_NQS, total_NQ1, out_NQH))
    return jnp.concatenate(outs, axis=2), (k, v, saved)


def _attention_backward(residuals, gradient):
    """With weights w, total Σw and out o = Σ w v / Σw: dS = w ∘ (g v′ − g · o) / Σw."""
    k, v, saved = residuals
    N, G, T, H = gradient.shape
    dq, dk_NHS, dv_NHS = [], jnp.zeros_like(k), jnp.zeros((N, H, T), v.dtype)
    for (start, end), (q_NQH, weights_NQS, total_NQ1, out_NQH) in zip(_blocks(T), saved):
        g_NQH = gradient[:, :, start:end].reshape(out_NQH.shape) / total_NQ1
        along_NQ1 = (g_NQH * out_NQH).sum(axis=-1, keepdims=True)
        ds_NQS = weights_NQS * (jnp.einsum("nqh,nsh->nqs", g_NQH, v[:, :end]) - along_NQ1)
        dq.append(jnp.einsum("nqs,nhs->nqh", ds_NQS, k[:, :, :end]).reshape(N, G, -1, H))
        # Transposing the small operand, so that the products need not transpose the large one.
        dk_NHS = dk_NHS.at[:, :, :end].add(
            jnp.einsum("nhq,nqs->nhs", q_NQH.transpose(0, 2, 1), ds_NQS)
        )
        dv_NHS = dv_NHS.at[:, :, :end].add(
            jnp.einsum("nhq,nqs->nhs", g_NQH.transpose(0, 2, 1), weights_NQS)
        )
    return jnp.concatenate(dq, axis=2), dk_NHS, dv_NHS.transpose(0, 2, 1)


causal_attention.defvjp(_attention_forward, _attention_backward)


def never(dtype: Any) -> Any:
    """The logit of an id that a model cannot give: it has no probability, and is finite, so that
    nothing turns into 0 · ∞."""
    return jnp.finfo(dtype).min / 2


def can_be_given(logits: Float[Array, "... V"]) -> Bool[Array, "... V"]:
    """Which ids a model can give, by their logits; see `never`. NaN rules nothing out, so that a loss
    of broken logits is NaN rather than that of fewer ids."""
    return ~(logits <= never(logits.dtype) / 2)


@jax.custom_vjp
def token_losses(
    logits: Float[Array, "... V"], labels: Array
) -> tuple[Float[Array, " ..."], Float[Array, " ..."]]:
    """Cross-entropy in nats of each label, and the log of the softmax's normaliser, both float32."""
    return _losses_forward(logits, labels)[0]


def _losses_forward(logits, labels):
    wide = logits.astype(jnp.float32)
    log_normaliser = jax.nn.logsumexp(wide, axis=-1)
    chosen = jnp.take_along_axis(wide, labels[..., None], axis=-1)[..., 0]
    return (log_normaliser - chosen, log_normaliser), (logits, labels, log_normaliser)


def _losses_backward(saved, gradients):
    """(g + h) · softmax − g · onehot for gradients g of the loss and h of the log-normaliser: one pass, and no scatter."""
    logits, labels, log_normaliser = saved
    g, h = (x[..., None] for x in gradients)
    softmax = jnp.exp(logits.astype(jnp.float32) - log_normaliser[..., None])
    chosen = along_last(jnp.arange(logits.shape[-1]), logits) == labels[..., None]
    return ((g + h) * softmax - jnp.where(chosen, g, 0.0)).astype(logits.dtype), None


token_losses.defvjp(_losses_forward, _losses_backward)
