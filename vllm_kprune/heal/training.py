"""The training loop: steps, evaluations, and what is kept.

A step adds up the gradients of `batch` windows, one after another, so memory does not depend on the
batch. AdamW without weight decay; gradients are clipped to norm 1; the learning rate rises linearly
for a twentieth of the steps, then falls linearly to zero. After each part of the steps, an eighth
unless `evaluations` says otherwise, the held-out text decides, and the state is written.

Weights, sums and what is measured are float32. Only the factors of a step's matrix products are
rounded, as in mixed precision (Micikevicius et al. 2018): to TF32 on a GPU, and to bfloat16 on a
CPU with instructions for it, where a step takes about two thirds of the time.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

import torch

from vllm_kprune.errors import KPruneError
from vllm_kprune.heal.judge import Judge
from vllm_kprune.heal.loss import LossParts, chunked_loss
from vllm_kprune.heal.masks import ZeroMasks, rounded
from vllm_kprune.heal.network import TextModel, stored_places
from vllm_kprune.heal.notes import HealNotes, Tensors
from vllm_kprune.heal.options import HealOptions
from vllm_kprune.heal.parts import Trained
from vllm_kprune.heal.text import HealText
from vllm_kprune.progress import Progress, Tell
from vllm_kprune.sparsify.body import checked_dtype

__all__ = ["Training", "learning_rate"]

# Evaluations in a row without a better state, after which a training ends.
_PATIENCE = 3
_WARMUP = 0.05
_BETAS = (0.9, 0.95)
_CLIP = 1.0
# A mean loss above this multiple of the first one is an explosion: it should only fall.
_EXPLOSION = 2.0
_AVERAGED = 5
_MOMENTS = ("exp_avg", "exp_avg_sq")


class _DivergedError(Exception):
    """The training cannot go on; the message says why."""


@dataclass
class Training:
    """A training that goes on from `notes` and notes what it does."""

    model: TextModel
    teacher: TextModel | None
    trained: Trained
    masks: ZeroMasks
    text: HealText
    judge: Judge
    options: HealOptions
    notes: HealNotes
    progress: Progress
    tell: Tell
    optimizer: torch.optim.Optimizer = field(init=False)
    share: float = field(init=False)
    highest_rate: float = field(init=False)

    def __post_init__(self) -> None:
        rate, share = self.options.learning_rate, self.options.distillation
        assert rate is not None and share is not None  # `HealOptions.for_model` has chosen
        self.highest_rate, self.share = rate, share
        self.optimizer = torch.optim.AdamW(
            self.trained.parameters.values(), betas=_BETAS, weight_decay=0.0, fused=True
        )

    def run(self) -> None:
        """Train to the last step, or until a reason to stop."""
        notes = self.notes
        if notes.start:
            self._restore(notes.load())
        else:
            self._begin()
        try:
            while notes.step < notes.steps and not notes.stopped:
                self._step()
                if self._is_due():
                    self._evaluate()
                    notes.save(self._state())
        except _DivergedError as error:
            notes.stopped = f"diverged at step {notes.step + 1}: {error}"
        notes.stopped = notes.stopped or "finished"

    def _begin(self) -> None:
        self.progress("measure held-out text", 0.0)
        began = time.monotonic()
        measured = self.judge.measure(self.model)
        evaluation = time.monotonic() - began
        self.notes.start = {name: one.bits_per_character.value for name, one in measured.items()}
        self.notes.steps = self.options.planned_steps or self._fitting(evaluation)
        self.notes.save(self._state())

    def _fitting(self, evaluation: float) -> int:
        """How many steps fit into `--minutes`, by the time of one, without training."""
        assert self.options.minutes is not None
        self.progress("measure a step", 0.0)
        self._accumulate(0)  # the first one allocates memory
        self._zero()
        began = time.monotonic()
        self._accumulate(0)
        self._update(0.0)
        self.optimizer.state.clear()
        seconds = time.monotonic() - began
        left = 60 * self.options.minutes - (self.options.evaluations + 1) * evaluation
        return max(1, int(left / seconds))

    def _step(self) -> None:
        notes = self.notes
        parts = self._accumulate(notes.step)
        language, distance = (
            parts.language_modelling / parts.tokens,
            parts.distillation / parts.tokens,
        )
        share = self.share
        loss = (1 - share) * language + share * distance
        self._refuse_divergence(loss)
        rate = learning_rate(notes.step, notes.steps, self.highest_rate)
        self._update(rate)
        notes.curve.append(
            {"loss": loss, "language_modelling": language, "distillation": distance, "rate": rate}
        )
        notes.step += 1
        self.progress("heal", notes.step / notes.steps)

    def _refuse_divergence(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise _DivergedError("the loss is NaN or infinite")
        losses = [*(one["loss"] for one in self.notes.curve), loss]
        # Windows differ, so a mean; and a loss that is mostly distillation may begin at almost 0.
        first, last = fmean(losses[:_AVERAGED]), fmean(losses[-_AVERAGED:])
        if last > _EXPLOSION * first + 1:
            raise _DivergedError(f"the loss rose from {first:.2f} to {last:.2f} nats")

    def _accumulate(self, step: int) -> LossParts:
        """Add up the gradients of a step's windows."""
        total = LossParts(0.0, 0.0, 0)
        with _rounded_products(self.model.device):
            for place in range(self.options.batch):
                ids = torch.from_numpy(self.text.window(step * self.options.batch + place))
                total += self._window(ids.to(self.model.device))
        return total

    def _window(self, ids: torch.Tensor) -> LossParts:
        guide = None
        if self.teacher is not None:
            with torch.no_grad():
                guide = (self.teacher.hidden(ids)[:-1], self.teacher.head)
        weight = 1 / (self.options.batch * (len(ids) - 1))
        # Position p predicts token p + 1.
        hidden = self.model.hidden(ids)[:-1]
        return chunked_loss(hidden, self.model.head, ids[1:], guide, self.share, weight)

    def _update(self, rate: float) -> None:
        """One step of the optimiser, with zeros held."""
        parameters = self.trained.parameters
        self.masks.hold_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), _CLIP)
        if not bool(torch.isfinite(norm)):
            raise _DivergedError("the gradient is NaN or infinite")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.masks.hold(parameters)
        self._zero()

    def _zero(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def _is_due(self) -> bool:
        """Is this step the last one before an evaluation?"""
        step, steps, number = self.notes.step, self.notes.steps, self.options.evaluations
        return step * number // steps > (step - 1) * number // steps

    def _evaluate(self) -> None:
        """Let the held-out text judge the state, and keep it if it is the best one."""
        notes = self.notes
        try:
            measured = self.judge.measure(self.model)
        except KPruneError as error:
            raise _DivergedError(str(error)) from None
        bits = {name: one.bits_per_character.value for name, one in measured.items()}
        standing = self.judge.standing(bits, notes.start)
        before = notes.best["score"] if notes.best else 1.0
        accepted = not standing.too_bad and standing.score < before
        found = {"step": notes.step, "bits": dict(standing.bits), "score": standing.score}
        notes.judged.append(found | {"accepted": accepted, "too_bad": list(standing.too_bad)})
        for name in standing.too_bad:
            worse = standing.bits[name] / notes.start[name] - 1
            limit = self.judge.limits[name]
            self.tell(
                f"step {notes.step}: {name} is {worse:.2%} worse than before healing, more than "
                f"--keep-within {name}={limit * 100:g}% allows; this state is not kept"
            )
        if accepted:
            notes.best = found
            notes.save_best(self._weights())
        elif self._gave_up():
            notes.stopped = f"no better state for {_PATIENCE} evaluations"

    def _gave_up(self) -> bool:
        last = self.notes.judged[-_PATIENCE:]
        return len(last) == _PATIENCE and not any(one["accepted"] for one in last)

    def _weights(self) -> Tensors:
        """What training changed, rounded to the data types of the checkpoint."""
        found = {}
        for name, values in self.trained.changed().items():
            _, info = stored_places(self.model.body, name)[0]
            found[name] = rounded(values, checked_dtype(info), self.masks.masks.get(name))
        return found

    def _state(self) -> Tensors:
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self.trained.parameters.items():
            state[name] = parameter.data
            moments = self.optimizer.state.get(parameter, {})
            state |= {f"{name}:{key}": moments[key] for key in _MOMENTS if key in moments}
        return state

    def _restore(self, state: Tensors) -> None:
        for name, parameter in self.trained.parameters.items():
            parameter.data.copy_(state[name])
            if f"{name}:{_MOMENTS[0]}" in state:
                # A copy: what was read is mapped from a file that will be removed.
                moments = {k: state[f"{name}:{k}"].to(parameter.device).clone() for k in _MOMENTS}
                step = torch.tensor(float(self.notes.step), device=parameter.device)
                self.optimizer.state[parameter] = {"step": step, **moments}


@contextmanager
def _rounded_products(device: torch.device) -> Iterator[None]:
    """Let PyTorch round the factors of float32 matrix products where that is faster."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if device.type == "cpu" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def learning_rate(step: int, steps: int, highest: float) -> float:
    """The learning rate of a step, the first of which is 0.

    >>> [round(learning_rate(step, 40, 1.0), 2) for step in (0, 1, 2, 21, 39)]
    [0.5, 1.0, 1.0, 0.5, 0.03]
    """
    rise = max(1, round(steps * _WARMUP))
    if step < rise:
        return highest * (step + 1) / rise
    return highest * (steps - step) / (steps - rise)
