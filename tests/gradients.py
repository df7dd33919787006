"""Dense attention in torch with a mask, a score and a sink -> gradients, and how far one may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnc.runtime.reference import out_allowance


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Attention by its definition, differentiable.

    Shape: mask broadcast to ``[B, Hq, Q, K]``; ``score(dot, *learned)`` maps scaled products to
    scores; ``sink(*learned)`` is broadcast to ``[B, Hq]``.
    """

    mask: Tensor
    scale: float
    learned: tuple[Tensor, ...] = ()
    score: Callable[..., Tensor] = field(default=lambda dot, *learned: dot)
    sink: Callable[..., Tensor] | None = None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, learned: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return out and lse in the dtype of q."""
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = self.score(q @ k.mT * self.scale, *learned)
        scores = scores.masked_fill(~self.mask, -math.inf)
        if self.sink is not None:
            logit = self.sink(*learned).to(scores)[..., None, None]
            scores = torch.cat([scores, logit.expand(*scores.shape[:3], 1)], 3)
            v = torch.nn.functional.pad(v, (0, 0, 0, 1))
        empty = (scores == -math.inf).all(3)
        finite = scores.masked_fill(empty[..., None], 0)
        weights = finite.softmax(3).masked_fill(empty[..., None], 0)
        return weights @ v, finite.logsumexp(3).masked_fill(empty, -math.inf)

    def gradients(
        self, q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, grad_lse: Tensor | None,
        dtype: torch.dtype = torch.float64,
    ) -> list[Tensor]:
        """Return those of q, k, v and what is learned, computed in a dtype."""
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v, *self.learned)]
        out, lse = self.attend(*leaves[:3], leaves[3:])
        loss = (out * grad_out.to(dtype)).sum()
        if grad_lse is not None:
            seen = lse != -math.inf
            loss = loss + (lse[seen] * grad_lse.to(dtype)[seen]).sum()
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [
            torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)
        ]

    def check(
        self, found: Sequence[Tensor | None], q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor,
        grad_lse: Tensor | None = None,
    ) -> None:
        """Hold gradients against float64: twice the error of the dense dtype, and some ulp.

        Of fp32 also what a lse rounded to it moves, in each weight by the same share.
        For float64 itself the dense form has no error to compare with: 2**12 ulp.
        The ulp are those of the largest gradient of all: where a query has one key, dQ and dK are
        the difference of two equal numbers, which the dense form happens to find without error.
        """
        exact = self.gradients(q, k, v, grad_out, grad_lse)
        plain = self.gradients(q, k, v, grad_out, grad_lse, q.dtype)
        names = ("dq", "dk", "dv", *(f"learned {i}" for i in range(len(self.learned))))
        largest = max(float(e.abs().max()) for e in exact if e.numel())
        _, lse = self.attend(q.double(), k.double(), v.double(), [x.double() for x in self.learned])
        largest_lse = float(lse.masked_fill(lse == -math.inf, 0).abs().max())
        for name, g, e, p in zip(names, found, exact, plain, strict=True):
            assert g is not None
            assert g.shape == e.shape
            if not e.numel():
                continue
            error = float((g.double() - e).abs().max())
            bound = out_allowance(q.dtype, float((p.double() - e).abs().max()), largest)
            bound += 2.0**-23 * largest_lse * largest
            if q.dtype == torch.float64:
                bound = 2.0**-40 * max(largest, 1.0)
            assert error <= bound, f"{name} is off by {error:.3e}, allowed {bound:.3e}"
