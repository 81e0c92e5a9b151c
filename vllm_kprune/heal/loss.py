"""The loss: language modelling plus distillation, and its gradient, in pieces of the text.

Logits of a large vocabulary are the largest thing of a training step: 512 tokens of Gemma-3 take
0.5 GB for each of several copies. So the head is applied to a few hidden states at a time, and the
loss of each piece is differentiated at once. Only the gradient with respect to the hidden states
is kept for the body of the network.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = ["Head", "LossParts", "chunked_loss", "mixed_loss"]

# Logits of a piece; a handful of tensors of this size are there at once.
_LOGITS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Head:
    """The LM head: weights [vocabulary, hidden], and what a family does to the logits.

    Cohere multiplies them by `scale`; Gemma can bound them by `cap` (cap * tanh(logits / cap)).
    """

    weight: torch.Tensor
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [tokens, vocabulary] of hidden states [tokens, hidden]."""
        logits = functional.linear(hidden, self.weight) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@dataclass(frozen=True)
class LossParts:
    """Sums over tokens, in nats: cross-entropy, and divergence from the teacher."""

    language_modelling: float
    distillation: float
    tokens: int

    def __add__(self, other: "LossParts") -> "LossParts":
        return LossParts(
            self.language_modelling + other.language_modelling,
            self.distillation + other.distillation,
            self.tokens + other.tokens,
        )


def mixed_loss(
    logits: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | None, share: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(1 - share) * cross-entropy + share * KL(teacher || student), and both parts; sums in nats.

    Logits are [tokens, vocabulary], of the same tokens in the same order: a teacher's logits have
    been reduced to the kept ones. This is Hinton et al. 2015 (section 2) at temperature 1.
    """
    log_student = functional.log_softmax(logits, dim=-1)
    modelling = functional.nll_loss(log_student, targets, reduction="sum")
    if teacher is None:
        return (1 - share) * modelling, modelling, torch.zeros_like(modelling)
    log_teacher = functional.log_softmax(teacher, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return (1 - share) * modelling + share * divergence, modelling, divergence


def chunked_loss(
    hidden: torch.Tensor,
    head: Head,
    targets: torch.Tensor,
    teacher: tuple[torch.Tensor, Head] | None,
    share: float,
    weight: float | None,
) -> LossParts:
    """The loss of hidden states [tokens, hidden]; with `weight`, its gradient times `weight` too.

    The gradient goes to the head's weights at once, and through `hidden` to the body.
    """
    leaf = hidden.detach().requires_grad_(weight is not None)
    step = max(1, _LOGITS_AT_ONCE // len(head.weight))
    total = LossParts(0.0, 0.0, 0)
    with torch.set_grad_enabled(weight is not None):
        for first in range(0, len(targets), step):
            part = slice(first, first + step)
            guide = None
            if teacher is not None:
                with torch.no_grad():
                    guide = teacher[1].logits(teacher[0][part])
            loss, modelling, divergence = mixed_loss(
                head.logits(leaf[part]), targets[part], guide, share
            )
            if weight is not None:
                (loss * weight).backward()  # type: ignore[no-untyped-call]
            total += LossParts(modelling.item(), divergence.item(), len(targets[part]))
    if weight is not None and hidden.requires_grad:
        hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
    return total
