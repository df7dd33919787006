"""score terms -> torch source of their derivatives, for the backward of the CPU executor."""

from __future__ import annotations

from attnc.codegen.predicate import HostDialect
from attnc.codegen.score import TorchScore
from attnc.codegen.writer import Writer
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.score_derivative import derivative


def emit_slopes(score: sc.RealExpr, dialect: HostDialect, name: str = "_slopes") -> str:
    """Print the derivatives of a score, or of a sink's logit, as a torch function.

    It takes what the score takes and returns the slope by ``dot`` and, for each element of an input
    that the score reads, ``(input, index, slope)``; numbers have none. The source expects
    ``predicate.HOST_HELPERS``.
    """
    found = derivative(score)
    torch_score = TorchScore(dialect)
    out = Writer()
    with out.block(f"def {name}(dot, q, k, h, b, nq, nk, data):"):
        out.line('"""The slopes of a score: by `dot`, by each element of an input it reads."""')
        out.line("dtype = dot.dtype")
        out.line(f"by_dot = _real({torch_score.text(found.dot)}, dtype)")
        with out.block("by_element = ["):
            for one, slope in found.reads:
                if one.index:
                    index = ", ".join(dialect.integer(i) for i in one.index)
                    text = f"_real({torch_score.text(slope)}, dtype)"
                    out.line(f'("{one.name}", ({index},), {text}),')
        out.line("]")
        out.line("return by_dot, by_element")
    return out.text()


def emit_sink_slopes(sink: sc.RealExpr, dialect: HostDialect, *, kv_heads: bool) -> str:
    """Print ``_sink_slopes(q, k, data)``: what a sink's logit of each head changes by.

    ``kv_heads``: whether the heads of the pattern are those of k.
    """
    out = Writer()
    out.line(emit_slopes(sink, dialect, "_sink_logit_slopes").rstrip())
    out.line()
    out.line()
    with out.block("def _sink_slopes(q, k, data):"):
        out.line('"""As `_sink`: the elements of inputs in each logit, and the slopes by them."""')
        group = " // (q.shape[1] // k.shape[1])" if kv_heads else ""
        out.line(f"h = torch.arange(q.shape[1], device=q.device){group}")
        out.line("b = torch.arange(q.shape[0], device=q.device)[:, None]")
        out.line("dot = torch.zeros((), dtype=torch.float64, device=q.device)")
        out.line("return _sink_logit_slopes(dot, 0, 0, h, b, q.shape[2], k.shape[2], data)[1]")
    return out.text()
