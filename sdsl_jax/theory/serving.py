"""Serving a target with a draft: from everything that a designer can choose to speed, latency,
memory and money.

One differentiable function, `outcome`, stands behind every objective and every constraint of a
co-design.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array

from sdsl_jax.theory.arrays import Scalar, namespace
from sdsl_jax.theory.costs import ShapeRule
from sdsl_jax.theory.hardware import (
    Hardware,
    Load,
    Precision,
    Round,
    Shape,
    family_shape,
    longer,
    overlapped,
    pass_time,
    resident_bytes,
    round_time,
)
from sdsl_jax.theory.laws import AcceptanceLaw, LossLaw, ModelPoint
from sdsl_jax.theory.lookahead import tokens_per_round

_MILLION, _HOUR = 1e6, 3600.0


class Design(NamedTuple):
    """The choices of a designer; any of them may be a variable of the optimisation.

    Attributes:
      draft_params: Non-embedding parameters of the draft, N.
      lookahead: Drafted tokens per round, γ ≥ 1.
      draft_tokens: Training tokens of the draft, D.
      aspect_ratio: Width over layers of the draft.
      batch: Rows that are decoded together, B.
      target_params: Non-embedding parameters of the target, M.
    """

    draft_params: Scalar
    lookahead: Scalar
    draft_tokens: Scalar
    aspect_ratio: Scalar
    batch: Scalar
    target_params: Scalar


class Serving(NamedTuple):
    """The conditions that a design is judged under. A pytree: differentiate by any of its numbers.

    Attributes:
      hardware: Each of the devices.
      loss_law: L(N, D), for draft and target alike.
      acceptance_law: Law from draft and target to α.
      draft_family: Shapes of drafts. The aspect penalty counts from its aspect ratio.
      target_family: Shapes of targets.
      target_tokens: Training tokens of the target, D′.
      context: Mean number of positions in the cache of each row.
      prompt_tokens: Tokens of the prompt of each request.
      new_tokens: Tokens generated for each request.
      precision: Precision of the target.
      draft_precision: Precision of the draft.
      devices: Devices that share the target (tensor parallelism).
      draft_devices: Devices that share the draft, among those of the target unless `overlapped`.
      aspect_penalty: κ in L·(1 + κ·ln²(r/r₀)), the loss of a draft with aspect ratio r where its
        family has r₀.
      volume_tokens: Tokens that the draft will serve in its life.
      training_utilisation: Share of the devices' FLOPs that training reaches.
      prefill_share: Share of prefills that the decoding devices do themselves: 1 for all, 0 where
        other devices do them.
      draft_shape: An existing draft, such as a published model, whatever size a design names. None
        takes the member of `draft_family` of the design's size.
      overlapped: 1 where the draft of the next round runs while the target verifies, on
        `draft_devices` beside those of the target; 0 where one waits for the other.
    """

    hardware: Hardware
    loss_law: LossLaw
    acceptance_law: AcceptanceLaw
    draft_family: ShapeRule
    target_family: ShapeRule
    target_tokens: Scalar
    context: Scalar
    prompt_tokens: Scalar
    new_tokens: Scalar
    precision: Precision = Precision()
    draft_precision: Precision = Precision()
    devices: Scalar = 1.0
    draft_devices: Scalar = 1.0
    aspect_penalty: Scalar = 0.0
    volume_tokens: Scalar = 1e12
    training_utilisation: Scalar = 0.4
    prefill_share: Scalar = 0.0
    draft_shape: Shape | None = None
    overlapped: Scalar = 0.0


class Outcome(NamedTuple):
    """The result of a design.

    Attributes:
      acceptance: α, as the law gave it: 0 or less and 1 or more are possible.
      tokens_per_round: τ.
      round: Seconds of a round, by part.
      step_seconds: Seconds of one step of the target alone.
      speedup: S over serving with the target alone on the same devices, prefills included.
      tokens_per_second: Throughput of all rows together, prefills of the decoding devices included.
      seconds_per_token: Inverse of `tokens_per_second`.
      first_token_seconds: Seconds of the prefill of one request by both models (TTFT, without
        waiting for a free row).
      output_token_seconds: Mean seconds between two tokens of one request while it decodes (TPOT):
        its latency after the first token, over its new tokens.
      latency_seconds: Seconds of one request, from its arrival at a free row to its last token,
        where no row is ever empty.
      memory_bytes: Weights and full caches on the fullest device, of both models where they share
        devices.
      draft_loss: Loss of the draft, nats per token.
      target_loss: Loss of the target, nats per token.
      cost_per_million_tokens: Cost of serving, in the unit of the price.
      joules_per_token: Energy of a token, at the power of all devices.
      training_flops: FLOPs to train the draft.
      training_cost: Cost of training the draft, in the unit of the price.
      total_cost: Cost of training the draft and serving the volume.
      decode_speedup: S of decoding alone, τ·step/round; equal to `speedup` without prefills.
      prefill_load: Share of the decoding devices' time that prefills take.
    """

    acceptance: Array
    tokens_per_round: Array
    round: Round
    step_seconds: Array
    speedup: Array
    tokens_per_second: Array
    seconds_per_token: Array
    first_token_seconds: Array
    output_token_seconds: Array
    latency_seconds: Array
    memory_bytes: Array
    draft_loss: Array
    target_loss: Array
    cost_per_million_tokens: Array
    joules_per_token: Array
    training_flops: Array
    training_cost: Array
    total_cost: Array
    decode_speedup: Array
    prefill_load: Array


def counted(shape: Shape, law: LossLaw | AcceptanceLaw) -> Array:
    """The size of a model in the parameter count of a law."""
    if law.about.params_count == "total":
        return shape.total_params
    return namespace(shape, law).asarray(shape.params)


def size_in_law(shape: Shape, law: LossLaw | AcceptanceLaw) -> Array:
    """The size of the dense model that a model counts as in a law, in the law's parameter count.

    The laws were fitted to dense models. A mixture of experts counts as the geometric mean of all
    its parameters and of those that a token passes through. That is a rule of thumb between two
    bounds: it has more to remember with than its active parameters, and less to compute with than
    all of them. A dense model counts as itself.
    """
    size = counted(shape, law)
    idle = namespace(shape, law).asarray(shape.params) - shape.active_params
    return size * namespace(shape, law).sqrt((size - idle) / size)


def shapes(serving: Serving, design: Design) -> tuple[Shape, Shape]:
    """Shapes of draft and target."""
    target = family_shape(design.target_params, serving.target_family)
    if serving.draft_shape is not None:
        return serving.draft_shape, target
    family = serving.draft_family._replace(aspect_ratio=design.aspect_ratio)
    return family_shape(design.draft_params, family), target


def losses(serving: Serving, design: Design, draft: Shape | None = None) -> tuple[Array, Array]:
    """Losses of draft and target, in nats per token; `draft` as in `outcome`."""
    family_draft, target = shapes(serving, design)
    draft = family_draft if draft is None else draft
    xp = namespace(serving, design, draft)
    bend = xp.log(xp.asarray(design.aspect_ratio) / serving.draft_family.aspect_ratio)
    law = serving.loss_law
    draft_loss = law(size_in_law(draft, law), design.draft_tokens) * (
        1 + serving.aspect_penalty * bend**2
    )
    return draft_loss, law(size_in_law(target, law), serving.target_tokens)


def acceptance(serving: Serving, design: Design, draft: Shape | None = None) -> Array:
    """α of the design's draft and target, as the law gives it; `draft` as in `outcome`."""
    draft_loss, target_loss = losses(serving, design, draft)
    family_draft, target = shapes(serving, design)
    draft = family_draft if draft is None else draft
    law, xp = serving.acceptance_law, namespace(serving, design, draft)
    return law(
        ModelPoint(size_in_law(draft, law), draft_loss, xp.asarray(design.draft_tokens)),
        ModelPoint(size_in_law(target, law), target_loss, xp.asarray(serving.target_tokens)),
    )


def _prefill_time(hardware: Hardware, shape: Shape, precision: Precision, load: Load) -> Array:
    """Seconds to read a prompt: a pass without a head that draws one token in each row, since only
    the last token of a prompt needs a distribution."""
    drawn = hardware.token_seconds * namespace(hardware, load).asarray(load.batch)
    undrawn = hardware._replace(token_seconds=0.0)
    return pass_time(undrawn, shape._replace(vocab_size=0.0), precision, load) + drawn


def target_prefill(serving: Serving, design: Design) -> Array:
    """Seconds in which the target reads a prompt, its tokens attending to half of it on average."""
    half = namespace(serving, design).asarray(serving.prompt_tokens) / 2
    reading = Load(serving.prompt_tokens, 1.0, half, serving.devices)
    return _prefill_time(serving.hardware, shapes(serving, design)[1], serving.precision, reading)


def outcome(serving: Serving, design: Design, draft: Shape | None = None) -> Outcome:
    """Everything that a design gives, as smooth functions of both arguments.

    An acceptance of 0 or less counts as 0, and one of 1 or more as 1. docs/theory.md, section 10,
    has the equations.

    Args:
      serving: Conditions that the design is judged under.
      design: The choices.
      draft: A draft with a shape of its own, such as a published model; the member of the draft
        family if left out.
    """
    s, hardware, xp = serving, serving.hardware, namespace(serving, design, draft)
    draft_loss, target_loss = losses(s, design, draft)
    alpha = acceptance(s, design, draft)
    family_draft, target = shapes(s, design)
    draft = family_draft if draft is None else draft
    tau = tokens_per_round(alpha, design.lookahead)
    took = round_time(
        hardware,
        draft,
        target,
        design.lookahead,
        design.batch,
        s.context,
        s.precision,
        s.draft_precision,
        s.devices,
        s.draft_devices,
    )
    # The draft runs beside the target, or in turn with it.
    beside = xp.asarray(s.overlapped)
    took = took._replace(overlap=beside * overlapped(took).overlap)
    step = pass_time(hardware, target, s.precision, Load(1.0, design.batch, s.context, s.devices))
    # A prompt's tokens attend to half of it on average.
    half = xp.asarray(s.prompt_tokens) / 2
    reading = Load(s.prompt_tokens, 1.0, half)
    target_first = _prefill_time(hardware, target, s.precision, reading._replace(devices=s.devices))
    draft_first = _prefill_time(
        hardware, draft, s.draft_precision, reading._replace(devices=s.draft_devices)
    )
    together = longer(target_first, draft_first)
    first = xp.where(beside > 0, together, target_first + draft_first)
    # While a prompt is read no row is decoded, and each request has one for its new tokens.
    batch, share = xp.asarray(design.batch), xp.asarray(s.prefill_share)
    prefill = share / s.new_tokens
    seconds = took.seconds / (batch * tau) + prefill * first
    plain_seconds = step / batch + prefill * target_first
    longest = xp.asarray(s.prompt_tokens) + s.new_tokens
    of_target = resident_bytes(target, s.precision, design.batch, longest) / s.devices
    of_draft = resident_bytes(draft, s.draft_precision, design.batch, longest) / s.draft_devices
    memory = xp.where(beside > 0, xp.maximum(of_target, of_draft), of_target + of_draft)
    devices = s.devices + beside * s.draft_devices
    price = xp.asarray(hardware.price_per_hour) * devices / _HOUR
    # A backward pass costs twice a forward one.
    training = 3 * draft.flops_per_token(0.0) * design.draft_tokens
    training_seconds = training / (hardware.flops_per_second * s.training_utilisation)
    training_cost = training_seconds * hardware.price_per_hour / _HOUR
    return Outcome(
        acceptance=alpha,
        tokens_per_round=tau,
        round=took,
        step_seconds=step,
        speedup=plain_seconds / seconds,
        tokens_per_second=1 / seconds,
        seconds_per_token=seconds,
        first_token_seconds=first,
        # A request's tokens come with its rounds, and wait for the prefills of the B − 1 others.
        output_token_seconds=took.seconds / tau + (batch - 1) * prefill * first,
        # Little's law: B requests are always under way, and one leaves every new_tokens·seconds.
        # That holds the prefills that the decoding devices do, a request's own among them; the
        # others are over before a request takes a row.
        latency_seconds=(1 - share) * first + batch * s.new_tokens * seconds,
        memory_bytes=memory,
        draft_loss=draft_loss,
        target_loss=target_loss,
        cost_per_million_tokens=_MILLION * price * seconds,
        joules_per_token=xp.asarray(hardware.watts) * devices * seconds,
        training_flops=training,
        training_cost=training_cost,
        total_cost=training_cost + s.volume_tokens * price * seconds,
        decode_speedup=tau * step / took.seconds,
        prefill_load=prefill * first / seconds,
    )
