"""attnc.nn: modules agree with the definition, hold what is learned, and refuse what cannot be."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import attnc
from attnc.nn import Attention, CrossAttention, SelfAttention

WINDOW = attnc.parse("pattern near = { q -> k : 0 <= q - k and q - k < 5 }")
LEARNED = attnc.parse("""
score offset(input table: real[4, 9]) heads h: 4 = { q -> k, h : table[h][min(q - k, 8)] }
attention biased(input logit: real[4]) heads h: 4 =
    softmax(dot + offset, over: causal, sink: logit[h])
""")
DOCUMENTS = attnc.parse(
    "input doc: int[n]\npattern packed = { q -> k : k <= q and doc[q] == doc[k] }"
)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def tokens(length: int = 21, width: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(seed))


def dense(layer: Any, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    """Return what a layer says, by torch's own attention under a dense mask."""
    heads = lambda y, count: y.unflatten(2, (count, -1)).transpose(1, 2)  # noqa: E731
    q = heads(layer.q_proj(x), layer.heads)
    k, v = (heads(p(memory), layer.kv_heads) for p in (layer.k_proj, layer.v_proj))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=True, scale=layer.attention.scale
    )
    return layer.out_proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    "options",
    [{}, {"kv_heads": 2, "bias": False}, {"head_dim": 24, "value_dim": 16}, {"scale": 0.5}],
    ids=str,
)
@torch.no_grad()
def test_self_attention_is_torch_attention_under_the_mask(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(64, 4, WINDOW, **options)
    assert all((p.bias is None) == ("bias" in options) for p in (layer.q_proj, layer.out_proj))
    x = tokens()
    out = layer(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, dense(layer, x, x, WINDOW.mask(n=21)))


@torch.no_grad()
def test_cross_attention_reads_a_memory_of_its_own_width() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(64, 4, WINDOW, memory_dim=48, kv_heads=1)
    x, memory = tokens(9), tokens(14, 48, seed=1)
    expected = dense(layer, x, memory, WINDOW.mask(nq=9, nk=14))
    torch.testing.assert_close(layer(x, memory), expected)


@torch.no_grad()
def test_rotary_turns_queries_and_keys() -> None:
    """The same turn of all positions changes nothing; one of the keys alone does."""
    torch.manual_seed(0)
    plain = SelfAttention(64, 4, WINDOW)
    turned = copy.deepcopy(plain)
    assert turned.attention.op is plain.attention.op
    x = tokens()
    turned.rotary = lambda q, k: (q.flip(3), k.flip(3))
    torch.testing.assert_close(turned(x), plain(x))
    turned.rotary = lambda q, k: (q, k.flip(3))
    assert (turned(x) - plain(x)).abs().max() > 1e-3


def learned_layer() -> Attention:
    make = torch.Generator().manual_seed(3)
    first = {"table": torch.randn(4, 9, generator=make), "logit": torch.randn(4, generator=make)}
    return Attention(LEARNED, 16, learned=first)


@torch.no_grad()
def test_learned_inputs_are_parameters_under_their_names() -> None:
    layer = learned_layer()
    assert set(layer.state_dict()) == set(dict(layer.named_parameters())) == {"table", "logit"}
    q, k, v = (torch.randn(2, 4, 13, 16) for _ in range(3))
    inputs = dict(layer.state_dict())
    torch.testing.assert_close(layer(q, k, v), layer.op(q, k, v, **inputs), rtol=0, atol=0)
    scores = LEARNED.scores(n=13, inputs=inputs, dot=(q[0] @ k[0].mT) / 4)
    assert scores.sink is not None
    kept = scores.values.masked_fill(~LEARNED.mask(n=13, inputs=inputs), -torch.inf)
    weights = torch.cat([kept, scores.sink[:, None, None].expand(4, 13, 1)], 2).softmax(2)
    expected = (weights[..., :13] @ v[0].double()).float()
    torch.testing.assert_close(layer(q, k, v)[0], expected)


def test_a_state_dict_goes_through_a_file() -> None:
    layer, file = learned_layer(), io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = Attention(layer.op, learned=("table", "logit"))
    assert not other.table.any()
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.table, layer.table)
    assert torch.equal(other.logit, layer.logit)


@torch.no_grad()
def test_what_is_neither_learned_nor_fixed_goes_through_forward() -> None:
    torch.manual_seed(0)
    doc = torch.arange(21) // 8
    open_layer = SelfAttention(64, 4, DOCUMENTS)
    held = SelfAttention(64, 4, DOCUMENTS, fixed={"doc": doc})
    held.load_state_dict({**open_layer.state_dict(), "attention.doc": doc})
    x = tokens()
    torch.testing.assert_close(held(x), open_layer(x, doc=doc), rtol=0, atol=0)
    mask = DOCUMENTS.mask(n=21, inputs={"doc": doc})
    torch.testing.assert_close(held(x), dense(held, x, x, mask))
    with pytest.raises(ValueError, match="the module holds doc"):
        held(x, doc=doc)
    assert held.double().attention.doc.dtype == torch.int64


@torch.no_grad()
def test_extents_go_through_forward() -> None:
    grid = attnc.parse("space image = grid(y, x)\npattern rows on image = { q -> k : q.y == k.y }")
    torch.manual_seed(0)
    layer = SelfAttention(64, 4, grid)
    x = tokens(12)
    expected = dense(layer, x, x, grid.mask(n=12, extents={"y": 3, "x": 4}))
    torch.testing.assert_close(layer(x, extents={"y": 3, "x": 4}), expected)


@torch.no_grad()
def test_names_of_a_module_get_an_underscore() -> None:
    pattern = attnc.parse(
        "score s(input train: real[4]) heads h: 4 = { q -> k, h : train[h] }\n"
        "attention all heads h: 4 = softmax(dot + s, over: causal)"
    )
    layer = Attention(pattern, 16, learned=("train",))
    assert list(layer.state_dict()) == ["train_"]
    assert layer.train().training
    q = torch.randn(1, 4, 7, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    torch.testing.assert_close(layer(q, q, q), expected)


def test_repr_shows_the_pattern_and_the_tiles() -> None:
    layer = SelfAttention(64, 4, WINDOW, kv_heads=2, tile=(64, 32), cpu_tile=(32, 32))
    text = repr(layer)
    assert "heads=4, kv_heads=2" in text
    assert (
        "Attention(near: { q -> k : 0 <= q - k and q - k < 5 }, head_dim=16, tile=64x32, "
        "cpu_tile=32x32)" in text
    ), text
    scored = repr(Attention(LEARNED, 16))
    assert "(biased: { q -> k : k <= q }, score (dot + table[h][min(q - k, 8)]), head" in scored
    long = Attention(attnc.zoo.longnet_branch(), 16)
    assert len(repr(long).split(": ", 1)[1].split(", head_dim")[0]) <= 80


@torch.no_grad()
def test_one_graph_serves_every_length() -> None:
    torch._dynamo.reset()
    layer = SelfAttention(64, 4, WINDOW, kv_heads=2)
    counter = CompileCounter()
    step = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for length in (21, 34, 50):
        x = tokens(length)
        torch.testing.assert_close(step(x), layer(x))
    assert counter.frame_count == 1


@torch.no_grad()
def test_compiled_with_learned_inputs() -> None:
    torch._dynamo.reset()
    layer = learned_layer()
    q, k, v = (torch.randn(2, 4, 13, 16) for _ in range(3))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), layer(q, k, v))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfAttention(64, 4, WINDOW, dropout=0.1), "dropout must be 0, got 0.1"),
        (lambda: SelfAttention(64, 4, WINDOW, kv_heads=3), "kv_heads must divide heads"),
        (lambda: SelfAttention(66, 4, WINDOW), "heads must divide embed_dim, got 4 and 66"),
        (lambda: SelfAttention(128, 8, LEARNED), "heads must be 4, as in pattern biased, got 8"),
        (lambda: SelfAttention(64, 4, "causal"), "p must be an attnc.Pattern, got str"),
        (lambda: Attention(LEARNED, 16, learned=("tabel",)), "did you mean `table`"),
        (lambda: Attention(WINDOW, 16, learned=("t",)), "no input 't'; its inputs are none"),
        (lambda: Attention(DOCUMENTS, 16, learned=("doc",)), "doc is int; only real inputs"),
        (
            lambda: Attention(LEARNED, 16, learned=("table",), fixed={"table": torch.zeros(4, 9)}),
            "table is both learned and fixed",
        ),
        (
            lambda: Attention(attnc.zoo.t5_bias(), 16, learned=("table",)),
            r"leaves sides of table \[8, buckets\] open",
        ),
        (lambda: Attention(attnc.compile(WINDOW, head_dim=16), 32), "head_dim must be 16"),
        (lambda: Attention(attnc.compile(WINDOW), tile=(64, 64)), "give tile to attnc.compile"),
    ],
)  # fmt: skip
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_self_attention_has_no_memory() -> None:
    with pytest.raises(TypeError, match="no memory_dim"):
        SelfAttention(64, 4, WINDOW, memory_dim=32)
