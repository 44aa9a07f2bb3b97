"""What a draft is trained for: the text itself, or closeness to a target's distributions.

A draft token is accepted with probability α = Σ_v min(p_v, q_v) (Leviathan et al., 2211.17192), which
is 1 − TV(p, q). Cross-entropy and KL lower the loss and with it, indirectly, 1 − α; total variation
lowers 1 − α itself. The two part ways: a draft trained for acceptance has more of it, and a worse
loss.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.config import ObjectiveName

# The mass beside the k most probable tokens is at least this much: its logarithm stays finite.
_LEAST_REST = 1e-7


class Objective(NamedTuple):
    """An objective of training. Hashable, so that it can be a static argument of a jitted step.

    Attributes:
      kind: Its name, see `divergence`; "ce" is cross-entropy on the text, of a truncated readout on
        those of its tokens that the model can give.
      eta: η of the hybrid's weight λ = exp(−η·α), with the mean α of a batch.
      temperature: Temperature at which target and draft are compared.
      first: First position of a window that counts.
      drafts: Drafts of a round that a head is unrolled for; 1 for other models.
      draft_decay: Draft k of a head weighs exp(−draft_decay·(k − 1)).
    """

    kind: ObjectiveName = "ce"
    eta: float = 3.0
    temperature: float = 1.0
    first: int = 0
    drafts: int = 1
    draft_decay: float = 0.0


# Cross-entropy on the text.
TEXT = Objective()


class TeacherProbs(NamedTuple):
    """Next-token distributions of a teacher.

    Attributes:
      log_probs: Natural logarithms of probabilities: of the whole vocabulary, or of the tokens in
        `ids` and, in the last column, of all the others together.
      ids: The most probable tokens; None where the whole vocabulary is given.
    """

    log_probs: Float[Array, "... V"]
    ids: Int[Array, "... K"] | None = None


class DistilBatch(NamedTuple):
    """A batch of windows with a teacher's distributions.

    Attributes:
      tokens: The windows; position t predicts token t + 1.
      teacher: The teacher's distributions after each of the first T tokens; None for a plain batch.
      features: The teacher's features of each of the first T tokens, as `read_features` takes them;
        None for drafts that do not read them.
    """

    tokens: Int[Array, "B T+1"]
    teacher: TeacherProbs | None
    features: Float[Array, "B T F"] | None = None


def acceptance(log_p: Float[Array, "... V"], log_q: Float[Array, "... V"]) -> Float[Array, " ..."]:
    """α = Σ_v min(p_v, q_v) of two distributions given by their logarithms."""
    return jnp.exp(jnp.minimum(log_p, log_q)).sum(axis=-1)


def _kl(
    p: Float[Array, "... V"], log_p: Float[Array, "... V"], log_q: Float[Array, "... V"]
) -> Float[Array, " ..."]:
    """Σ p·(ln p − ln q) over what p gives any probability."""
    return _relative_entropy(p, log_p, log_q, p > 0)


def _reachable_kl(
    p: Float[Array, "... V"], log_p: Float[Array, "... V"], log_q: Float[Array, "... V"]
) -> Float[Array, " ..."]:
    """p(K)·KL(p_K‖q), where q rules out whatever is not in K; KL(p‖q) where it rules out nothing.

    KL(p‖q) itself is infinite as soon as p gives anything outside K. This is the part of it that q
    can change, 0 at the best q.
    """
    ruled_out = log_q == -jnp.inf
    missed = jnp.where(ruled_out, p, 0.0).sum(axis=-1)
    # Exactly 1 where nothing is missed, whatever p sums to after rounding.
    reached = jnp.where(missed > 0, jnp.where(ruled_out, 0.0, p).sum(axis=-1), 1.0)
    least = jnp.log(jnp.where(reached > 0, reached, 1.0)) * reached
    return _relative_entropy(p, log_p, log_q, (p > 0) & ~ruled_out) - least


def _relative_entropy(
    p: Float[Array, "... V"],
    log_p: Float[Array, "... V"],
    log_q: Float[Array, "... V"],
    counted: Bool[Array, "... V"],
) -> Float[Array, " ..."]:
    """Σ p·(ln p − ln q) over the tokens that count."""
    # Both logarithms may be −∞ where p is 0: neither the product nor its gradient may see that.
    difference = jnp.where(counted, log_p, 0.0) - jnp.where(counted, log_q, 0.0)
    return (p * difference).sum(axis=-1)


def _entropy_term(p: Float[Array, "... V"], log_p: Float[Array, "... V"]) -> Float[Array, " ..."]:
    """Σ p·ln p, with 0·ln 0 = 0."""
    return (p * jnp.where(p > 0, log_p, 0.0)).sum(axis=-1)


def divergence(
    kind: ObjectiveName,
    log_p: Float[Array, "... V"],
    log_q: Float[Array, "... V"],
    eta: float = 3.0,
    mean_acceptance: Float[Array, ""] | None = None,
) -> Float[Array, " ..."]:
    """What a draft is to lower at each position. Every kind is 0 where q = p and positive elsewhere.

    | kind             |                                                                      |
    | ---------------- | -------------------------------------------------------------------- |
    | `kl`             | KL(p‖q) = Σ p ln(p/q); its gradient in the draft's logits is q − p     |
    | `reverse-kl`     | KL(q‖p) = Σ q ln(q/p)                                                 |
    | `js`             | ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2                                   |
    | `tv`             | TV = ½ Σ abs(p − q) = 1 − α                                           |
    | `log-acceptance` | −ln α; its gradient is that of TV over α                              |
    | `hybrid`         | λ·KL(p‖q) + (1 − λ)·TV, λ = exp(−η·mean α) without a gradient         |

    A draft of a truncated readout rules out whatever is not in its ids K, and KL(p‖q) is infinite.
    KL, and the KL of the hybrid, are then p(K)·KL(p_K‖q) with p_K, the target's distribution among
    K: the part of KL that the draft can change, whose gradient in the logits of K is p(K)·q − p.
    Nothing else changes. TV is at least 1 − p(K), because α is at most p(K).

    TV's gradient in the logit of v has the factor q_v, so it vanishes for tokens that the draft
    hardly expects: start from a trained draft, or use the hybrid, which is KL while α is small. Its
    λ is one for all positions: with one for each, the hard positions, whose KL is large anyway, would
    be trained by KL alone (measured: half the gain in α).

    Args:
      kind: Name of the objective; not "ce", which needs the text instead of p.
      log_p: Logarithms of the target's probabilities, normalised; −∞ is allowed.
      log_q: Logarithms of the draft's probabilities, normalised; −∞ is what the draft rules out.
      eta: η of the hybrid.
      mean_acceptance: α of the hybrid's λ; the mean over all positions if left out.

    Returns:
      Nats for the first three and −ln α, a probability for TV.
    """
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    if kind == "kl":
        return _reachable_kl(p, log_p, log_q)
    if kind == "reverse-kl":
        return _kl(q, log_q, log_p)
    if kind == "js":
        mean = (p + q) / 2
        log_mean = jnp.log(jnp.where(mean > 0, mean, 1.0))
        ends = _entropy_term(p, log_p) + _entropy_term(q, log_q)
        return ends / 2 - (mean * log_mean).sum(axis=-1)
    tv = jnp.abs(p - q).sum(axis=-1) / 2
    if kind == "tv":
        return tv
    if kind == "log-acceptance":
        # Where the two have nothing in common there is no direction to go.
        return -jnp.log1p(-jnp.minimum(tv, 1 - _LEAST_REST))
    if kind == "hybrid":
        alpha = (1 - tv).mean() if mean_acceptance is None else mean_acceptance
        weight = jax.lax.stop_gradient(jnp.exp(-eta * alpha))
        return weight * _reachable_kl(p, log_p, log_q) + (1 - weight) * tv
    raise ValueError(f"{kind!r} is not the name of a divergence")


def coarsened(
    log_q: Float[Array, "... V"], ids: Int[Array, "... K"] | None
) -> Float[Array, "... K+1"]:
    """The logarithms of the probabilities of some tokens and, last, of all the others together.

    Divergences of distributions coarsened alike are at most those of the whole ones, and α at least
    the whole one's; the difference is at most the mass of the others. A draft of a truncated readout
    can please the target with any of its ids among the others, so its coarsened α is bounded by the
    probability of all but the kept ids that it rules out.

    Args:
      log_q: Logarithms of the probabilities of the whole vocabulary.
      ids: Tokens to keep, all different; None keeps the distribution as it is.
    """
    if ids is None:
        return log_q
    return _with_others(jnp.take_along_axis(log_q, ids, axis=-1))


def _with_others(kept: Float[Array, "... K"]) -> Float[Array, "... K+1"]:
    """Logarithms of some tokens' probabilities and, last, of what they leave to the others."""
    others = 1 - jnp.exp(kept).sum(axis=-1, keepdims=True)
    return jnp.concatenate([kept, jnp.log(jnp.maximum(others, _LEAST_REST))], axis=-1)


class Readout(NamedTuple):
    """Which ids the columns of a model's logits stand for. Hashable, to be static.

    Attributes:
      ids: The ids, ascending; all of the vocabulary if empty.
      vocab_size: Ids of the vocabulary.
    """

    ids: tuple[int, ...]
    vocab_size: int

    def columns(
        self, tokens: Int[Array, " ..."]
    ) -> tuple[Int[Array, " ..."], Bool[Array, " ..."] | None]:
        """The column of each token, and whether it has one; None where every token has. A token
        without a column gets the first."""
        if not self.ids:
            return tokens, None
        column = np.zeros(self.vocab_size, np.int32)
        has_one = np.zeros(self.vocab_size, bool)
        column[[*self.ids]], has_one[[*self.ids]] = np.arange(len(self.ids)), True
        return jnp.asarray(column)[tokens], jnp.asarray(has_one)[tokens]


def compared(
    objective: Objective,
    readout: Readout,
    logits: Float[Array, "... B T C"],
    log_normaliser: Float[Array, "... B T"],
    teacher: TeacherProbs,
) -> tuple[Float[Array, "... B T K"], Float[Array, "... B T K"]]:
    """Logarithms of the teacher's and of the draft's probabilities, as an objective compares them.

    Only the columns that are compared are normalised. Where the teacher has the whole vocabulary and
    the draft does not, what the draft rules out is one column more: every objective is a sum over
    tokens, and over those linear in p.

    Args:
      objective: The objective, for its temperature.
      readout: Which ids the logits are those of.
      logits: Logits of the draft; of a head, those of each draft of a round first.
      log_normaliser: ln Σ exp of the logits.
      teacher: Distributions of the teacher, at the objective's temperature already.
    """
    # What was rounded for the disk no longer sums to one.
    log_p, ids = jax.nn.log_softmax(teacher.log_probs.astype(jnp.float32), axis=-1), teacher.ids
    drafts = logits.shape[: logits.ndim - log_p.ndim]  # one teacher for every draft of a round
    if objective.temperature != 1.0:
        scaled = logits.astype(jnp.float32) / objective.temperature
        log_normaliser = jax.nn.logsumexp(scaled, axis=-1)

    def log_q(chosen: Float[Array, "... K"]) -> Float[Array, "... K"]:
        return chosen.astype(jnp.float32) / objective.temperature - log_normaliser[..., None]

    if ids is not None:
        column, has_one = readout.columns(ids)
        column = jnp.broadcast_to(column, (*drafts, *column.shape))
        kept = log_q(jnp.take_along_axis(logits, column, axis=-1))
        own = _with_others(kept if has_one is None else jnp.where(has_one, kept, -jnp.inf))
    else:
        own = log_q(logits)
        if readout.ids:
            p = jnp.exp(log_p)
            among = jnp.zeros(log_p.shape[-1], bool).at[np.asarray(readout.ids)].set(True)
            missed = jnp.log(jnp.where(among, 0.0, p).sum(axis=-1, keepdims=True))
            log_p = jnp.concatenate([log_p[..., np.asarray(readout.ids)], missed], axis=-1)
            own = jnp.concatenate([own, jnp.full_like(own[..., :1], -jnp.inf)], axis=-1)
    return jnp.broadcast_to(log_p, (*drafts, *log_p.shape)), own


def draft_weights(objective: Objective, length: int) -> Float[np.ndarray, "K T"]:
    """How much each draft counts at each position of a window; the weights sum to 1.

    Draft k of a round that begins within the window stands at position k − 1 at the earliest.
    """
    number, at = np.arange(objective.drafts)[:, None], np.arange(length)[None]
    counts = at >= np.maximum(number, objective.first)
    each = counts / counts.sum(axis=1, keepdims=True)
    decay = np.exp(-objective.draft_decay * number)
    return (each * decay / decay.sum()).astype(np.float32)
