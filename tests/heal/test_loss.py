"""The loss on cases worked out by hand, and its gradient in pieces against autograd in one."""

import math

import pytest
import torch
from torch.nn import functional

from vllm_kprune.heal import loss
from vllm_kprune.heal.loss import Head, chunked_loss, mixed_loss


def test_the_loss_on_a_case_worked_out_by_hand() -> None:
    # Student (1/4, 3/4), teacher (1/2, 1/2), and token 0 comes next.
    student = torch.tensor([[1 / 4, 3 / 4]]).log() + 5  # logits have no fixed zero
    teacher = torch.tensor([[1 / 2, 1 / 2]]).log() - 3
    total, modelling, divergence = mixed_loss(student, torch.tensor([0]), teacher, 0.25)
    expected = math.log(2) / 2 + math.log(2 / 3) / 2
    assert modelling.item() == pytest.approx(math.log(4))
    assert divergence.item() == pytest.approx(expected)
    assert total.item() == pytest.approx(0.75 * math.log(4) + 0.25 * expected)
    assert mixed_loss(student, torch.tensor([0]), student, 1.0)[0].item() == pytest.approx(0)


@pytest.mark.parametrize("logits_at_once", [1, 100, 10_000])
@pytest.mark.parametrize("head", [(1.0, None), (0.25, 2.0)])
def test_pieces_give_the_loss_and_the_gradients_of_the_whole(
    logits_at_once: int, head: tuple[float, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_LOGITS_AT_ONCE", logits_at_once)
    random = torch.Generator().manual_seed(0)
    inputs, weight, hidden, guide = (
        torch.randn(*shape, generator=random) for shape in ((7, 5), (30, 5), (5, 5), (7, 5))
    )
    targets = torch.randint(0, 30, (7,), generator=random)
    results = []
    for whole in (True, False):
        w, h = (one.clone().requires_grad_() for one in (weight, hidden))
        student, teacher = Head(w, *head), Head(weight * 2, *head)
        states = inputs @ h
        if whole:
            logits = states @ w.T * head[0]
            logits = logits if head[1] is None else head[1] * torch.tanh(logits / head[1])
            wanted = functional.softmax(teacher.logits(guide), dim=-1)
            kl = (wanted * (wanted.log() - functional.log_softmax(logits, dim=-1))).sum()
            modelling = functional.cross_entropy(logits, targets, reduction="sum")
            ((0.3 * modelling + 0.7 * kl) / 7).backward()
            found = (modelling.item(), kl.item(), 7)
        else:
            parts = chunked_loss(states, student, targets, (guide, teacher), 0.7, 1 / 7)
            found = (parts.language_modelling, parts.distillation, parts.tokens)
        results.append((found, w.grad, h.grad))
    (expected, *gradients), (found, *in_pieces) = results
    assert found == pytest.approx(expected, rel=1e-5)
    for one, other in zip(gradients, in_pieces, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_without_a_teacher_only_language_modelling_is_left() -> None:
    weight = torch.eye(3, requires_grad=True)
    parts = chunked_loss(torch.zeros(4, 3), Head(weight), torch.arange(4) % 3, None, 0.5, None)
    assert (parts.distillation, weight.grad) == (0.0, None)
    assert parts.language_modelling == pytest.approx(4 * math.log(3))


def test_a_rise_of_the_mean_loss_is_a_divergence_and_a_single_hard_window_is_not() -> None:
    from types import SimpleNamespace
    from typing import Any

    from vllm_kprune.heal.training import Training, _DivergedError

    def after(losses: list[float], now: float) -> None:
        notes: Any = SimpleNamespace(curve=[{"loss": one} for one in losses])
        Training._refuse_divergence(SimpleNamespace(notes=notes), now)  # type: ignore[arg-type]

    after([3.0] * 9, 9.0)  # the mean of the last five is 4.2
    with pytest.raises(_DivergedError, match=r"the loss rose from 3.00 to 7.20 nats"):
        after([3.0] * 6 + [7.0, 8.0, 9.0], 9.0)
    with pytest.raises(_DivergedError, match="NaN or infinite"):
        after([], math.inf)
