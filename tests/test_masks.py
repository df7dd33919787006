"""Masks and scores by the public path: Python and the command give the same arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import attnc
from attnc.cli import invoke

TEXT = """
input rows: int[heads, *]
pattern p(w: int = 1) on grid(y, x) heads h: heads layers l: 2 =
    { q -> k, h : abs(q.y - k.y) <= w * l and k in rows[h] }
"""
ROWS = [[0, 2], [1]]


def by_command(tmp_path: Path, *args: str) -> NDArray[Any]:
    """Return what ``attnc mask`` writes."""
    out = tmp_path / "mask.npy"
    assert invoke(["mask", *args, "-o", str(out)]) == 0
    mask: NDArray[Any] = np.load(out)
    return mask


@pytest.mark.parametrize("layer", [None, 1])
def test_the_command_and_python_agree(tmp_path: Path, layer: int | None) -> None:
    file, rows = tmp_path / "p.attn", tmp_path / "rows.json"
    file.write_text(TEXT, encoding="utf-8")
    rows.write_text(json.dumps(ROWS), encoding="utf-8")
    flags = [] if layer is None else ["--layer", str(layer)]
    written = by_command(
        tmp_path, str(file), "-D", "w=2", "-I", f"rows={rows}", "--shape", "y=2,x=3", *flags
    )
    pattern = attnc.parse(TEXT, w=2)
    mask = pattern.mask(inputs={"rows": ROWS}, extents={"y": 2, "x": 3}, layer=layer)
    assert mask.shape == ((2, 2, 6, 6) if layer is None else (2, 6, 6))
    assert np.array_equal(written, mask.numpy())
    early = attnc.parse(TEXT, w=2, rows=np.array([[0, 2], [1, -1]]), y=2)
    assert torch.equal(early.mask(n=6, layer=layer), mask)
    if layer is not None:
        one = early.layer(layer)
        assert torch.equal(one.mask(n=6), mask)
        arrays = {"rows": np.array([[0, 2], [1, -1]])}
        assert np.array_equal(one.ir.mask(6, 6, arrays, {"y": 2, "x": 3}), mask.numpy())


def test_arrays_come_as_files_too(tmp_path: Path) -> None:
    ids = np.array([0, 0, 1, 2, 2])
    np.save(tmp_path / "ids.npy", ids)
    written = by_command(tmp_path, "document", "-I", f"doc_ids={tmp_path / 'ids.npy'}")
    by_tensor = attnc.zoo.document(doc_ids=torch.from_numpy(ids)).mask()
    assert np.array_equal(written, by_tensor.numpy())
    assert written[0].tolist() == (np.tri(5, dtype=bool) & (ids[:, None] == ids)).tolist()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"no numbers", "neither a .npy file nor .json"), (None, "cannot read")],
)
def test_a_file_that_is_no_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "ids.npy").write_bytes(content)
    assert invoke(["mask", "document", "-I", f"doc_ids={tmp_path / 'ids.npy'}"]) == 2
    assert says in capsys.readouterr().err


def test_a_drawing_names_layers_and_heads(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["mask", "interleaved_layers", "-D", "layers=2", "--shape", "n=2"]) == 0
    assert capsys.readouterr().out == "layer 0\n#.\n##\n\nlayer 1\n#.\n##\n"


def test_a_head_axis_is_repeated_behind_the_layers(tmp_path: Path) -> None:
    args = ("interleaved_layers", "-D", "layers=3", "-D", "window=1", "--shape", "n=4")
    once, thrice = by_command(tmp_path, *args), by_command(tmp_path, *args, "--heads", "2")
    assert (once.shape, thrice.shape) == ((3, 1, 4, 4), (3, 2, 4, 4))
    assert np.array_equal(thrice, once.repeat(2, axis=1))


def test_too_large_a_mask_is_refused_before_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["mask", "swin", "-D", "h=1024", "-D", "w=1024", "-o", str(tmp_path / "mask.npy")]
    assert invoke(args) == 1
    assert "error[ATT0506]: a dense mask [1, 1048576, 1048576] takes 1024 GiB" in (
        capsys.readouterr().err
    )


def test_scores() -> None:
    dot = torch.randn(2, 4, 4, dtype=torch.float64)
    scores = attnc.zoo.alibi(heads=2).scores(n=4, dot=dot)
    slopes = torch.tensor([2.0**-4, 2.0**-8], dtype=torch.float64)
    bias = slopes[:, None, None] * (torch.arange(4) - torch.arange(4)[:, None])
    torch.testing.assert_close(scores.values, dot + bias)
    assert (scores.sink, scores.scale) == (None, None)
    by_ir = attnc.Pattern(attnc.zoo.alibi(heads=2).ir).scores(n=4, dot=dot)
    torch.testing.assert_close(by_ir.values, scores.values)


def test_what_waits_and_what_does_not() -> None:
    waits = attnc.zoo.vertical_slash()
    assert waits.name == "vertical_slash"
    with pytest.raises(attnc.CompileError, match="ATT0213"):
        _ = waits.ir
    given = attnc.zoo.vertical_slash(verticals=[[0], [1]], slashes=[[0], [1]])
    assert (given.heads, given.ir.heads) == (2, 2)
    assert torch.equal(
        given.mask(n=4)[0],
        attnc.parse("pattern p = { q -> k : k <= q and (k == 0 or q == k) }").mask(n=4)[0],
    )
    assert attnc.zoo.vertical_slash(heads=3).heads == 3
    with pytest.raises(attnc.CompileError, match="ATT0206"):
        attnc.zoo.vertical_slash(head=3)
    with pytest.raises(ValueError, match="a length must be an integer"):
        given.mask(n=-1)
    with pytest.raises(ValueError, match="give the lengths"):
        attnc.zoo.causal().mask()


def test_the_ir_keeps_the_sizes_that_may_stay_open() -> None:
    rand = [[[5], [5, 3], [3], [], [2], [2]], [[]] * 6]
    pattern = attnc.zoo.bigbird(block=8, rand=rand)
    assert (pattern.heads, pattern.ir.sizes) == (2, ("rows",))
    other = attnc.zoo.bigbird(block=8, heads=2)
    assert other == pattern
    assert torch.equal(other.mask(n=64, inputs={"rand": rand}), pattern.mask(n=64))


def test_head_counts_follow_from_inputs_of_used_patterns() -> None:
    lists = {"verticals": [[0], [1]], "slashes": [[0], [1, 2]]}
    text = "pattern p = vertical_slash & window(left: 2)"
    pattern = attnc.parse(text, **lists)
    assert pattern.heads == 2
    assert torch.equal(pattern.mask(n=4), attnc.parse(text).mask(n=4, inputs=lists))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("casual", "ATT0202"), ("window(left: true)", "ATT0301"), ("window(lift: 1)", "ATT0206"),
        ("window(", "ATT0301"), ([["causal"]], "ATT0301"), (3, "ATT0301"),
    ],
)  # fmt: skip
def test_patterns_given_by_name_are_checked(given: object, code: str) -> None:
    text = "pattern p(inner: pattern = causal) = inner & { q -> k : q - k < 2 }"
    right = attnc.parse(text, inner="window(left: 1)").mask(n=4)
    assert torch.equal(right, attnc.zoo.window(left=1).mask(n=4))
    with pytest.raises(attnc.CompileError) as wrong:
        attnc.parse(text, inner=given)
    assert {d.code for d in wrong.value.diagnostics} == {code}


@pytest.mark.parametrize("extent", [-1, "x", None, 2.5, True, [3]])
def test_an_extent_is_a_length(extent: Any) -> None:
    pattern = attnc.parse("pattern p on grid(y, x: 2) = { q -> k : q.y == k.y }")
    assert pattern.mask(extents={"y": 3}).shape == (1, 6, 6)
    with pytest.raises(ValueError, match=r"y is .*; a length is an integer from 0"):
        pattern.mask(extents={"y": extent})


def test_blocks_take_a_number_of_heads_from_their_inputs() -> None:
    pattern = attnc.parse(
        "pattern p(input c: int[heads, *]) heads h: heads = { q -> k, h : k in c[h] }"
    )
    blocks = pattern.blocks(n=64, tile=(16, 16), inputs={"c": [[1], [2]]})
    assert (blocks.full, blocks.partial, blocks.empty) == (0, 8, 24)


def test_negative_counts_are_refused() -> None:
    pattern = attnc.zoo.document_prefix_lm(offsets=[0, 30, 20, 30], prefixes=[1, 1, 1])
    with pytest.raises(attnc.CompileError, match="input `doc`: a count to repeat is -10"):
        pattern.mask(n=40)
