"""The command: exit codes, streams, what is imported, hostile input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from attnc.cli import invoke

ROOT = Path(__file__).resolve().parents[1]
LONGFORMER = str(ROOT / "examples" / "longformer" / "longformer.attn")
BROKEN = "pattern p = { q -> k : abs(q - k <= 3 }\npattern r = { q -> k : z <= 3 }\n"


def attnc(
    *args: str, stdin: bytes | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "attnc", *args], input=stdin, capture_output=True, timeout=120,
        env={**os.environ, **(env or {})}, check=False,
    )
    out, err = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(args, done.returncode, out, err)


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.attn"
    path.write_text(BROKEN, encoding="utf-8")
    return str(path)


# --------------------------------------------------------------------------------- exit codes


def test_a_right_file_is_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["check", LONGFORMER]) == 0
    out, err = capsys.readouterr()
    assert out == "1 file checked, no errors\n"
    assert err == ""


def test_a_wrong_file_is_exit_1_with_plain_diagnostics(broken: str) -> None:
    done = attnc("check", broken)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error[ATT01")
    assert f"--> {broken}:1:" in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["chek"], "Did you mean `check`"),
        (["check", "--patern", "p", LONGFORMER], "Did you mean '--pattern'"),
        (["check"], "Missing argument"),
        (["mask", LONGFORMER, "--shape", "m=3"], "extents are n, nq and nk"),
        (["mask", LONGFORMER, "--shape", "nq=3"], "add nk="),
        (["mask", LONGFORMER, "--shape", "n=3", "--shape", "nq=3,nk=4"], "either n, or nq and nk"),
        (["mask", LONGFORMER, "--shape", "n=9999999999"], "over 1073741824 tokens"),
        (["mask", LONGFORMER, "-D", "window"], "name=value"),
        (["mask", LONGFORMER, "-D", "window=1", "-D", "window=2"], "gives `window` twice"),
        (["mask", LONGFORMER, "-o", "x.npy"], "-o needs --shape"),
        (["mask", LONGFORMER, "--shape", "n=4096"], "write the mask with -o"),
        (["emit", LONGFORMER, "--tile", "64"], "such as 128x64"),
        (["emit", LONGFORMER, "--stage", "plan", "--shape", "n=8"], "--stage blocks only"),
        (["emit", LONGFORMER, "--stage", "ptx", "--target", "cpu"], "GPU code"),
        (["emit", LONGFORMER, "--stage", "ast", "--explain"], "does not make"),
        (["run", LONGFORMER, "--head-dim", "64"], "goes with --synthetic"),
        (["run", LONGFORMER, "--synthetic", "--model-layer", "2"], "belong to the model"),
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_2_and_says_what_to_write(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in " ".join(err.split())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["check", "longfomer"], "did you mean `longformer`"),
        (["check", "no/such/file.attn"], "no file and no zoo pattern"),
        (["mask", LONGFORMER, "-D", "windw=8", "--shape", "n=8"], "windw"),
        (["mask", LONGFORMER, "-D", "window=eight", "--shape", "n=8"], "window"),
        (["mask", LONGFORMER, "--pattern", "nothing", "--shape", "n=8"], "nothing"),
        (["mask", "longformer", "--pattern", "causal", "--shape", "n=8"], "ATT0504"),
        (["mask", LONGFORMER, "--shape", "n=1000000", "-o", "x.npy"], "ATT0506"),
        (["mask", str(ROOT / "examples/s2_shards/s2_shards.attn"), "--heads", "5",
          "--shape", "n=8"], "ATT0505"),
        (["explain", "ATT9999"], "there is no code"),
        (["zoo", "longfomer"], "did you mean `longformer`"),
        (["check", str(ROOT)], "cannot read"),
    ],
)  # fmt: skip
def test_wrong_input_is_exit_1(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(args) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


def test_a_bug_is_reported_as_one_and_is_exit_70(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from attnc.compiler import driver

    def breaks() -> tuple[str, ...]:
        raise RuntimeError("two plus two is five")

    monkeypatch.setattr(driver, "zoo_names", breaks)
    assert invoke(["zoo"]) == 70
    err = capsys.readouterr().err
    assert err.startswith("error[ATT0901]: attnc broke: RuntimeError: two plus two is five")
    assert "report it" in err
    assert "Traceback" not in err


def test_an_interrupt_is_exit_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from attnc.compiler import driver

    def interrupted() -> tuple[str, ...]:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "zoo_names", interrupted)
    assert invoke(["zoo"]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "attnc", "zoo", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert err == b""


# -------------------------------------------------------------------------------------- verbs


def test_every_verb_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    from attnc.cli.group import VERBS

    for verb in VERBS:
        assert invoke([verb, "--help"]) == 0
        assert f"attnc {verb}" in capsys.readouterr().out.partition("Example")[2]


def test_mask_writes_the_mask(tmp_path: Path) -> None:
    out = tmp_path / "mask"  # exactly this name, no .npy added
    shape = ["--shape", "nq=5,nk=7"]
    assert invoke(["mask", LONGFORMER, "-D", "window=4", *shape, "-o", str(out)]) == 0
    mask = np.load(out)
    q, k = np.arange(5)[:, None], np.arange(7)[None, :]
    assert mask.dtype == np.bool_
    assert mask.shape == (1, 5, 7)
    assert np.array_equal(mask[0], (abs(q - k) <= 2) | (k < 1) | (q < 1))


def test_mask_heads(tmp_path: Path) -> None:
    out = tmp_path / "mask.npy"
    shards = str(ROOT / "examples" / "s2_shards" / "s2_shards.attn")
    assert invoke(["mask", shards, "--shape", "n=64", "-o", str(out)]) == 0
    assert np.load(out).shape == (12, 64, 64)
    assert invoke(["mask", "causal", "--heads", "3", "--shape", "n=6", "-o", str(out)]) == 0
    assert np.array_equal(np.load(out), np.tril(np.ones((3, 6, 6), dtype=bool)))


def test_mask_draws(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["mask", "causal", "--shape", "n=3"]) == 0
    assert capsys.readouterr().out == "#..\n##.\n###\n"


def test_a_path_wins_over_a_zoo_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "causal").write_text("pattern all = { q -> k : q == q }\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert invoke(["mask", "causal", "--shape", "n=2"]) == 0
    assert capsys.readouterr().out == "##\n##\n"


def test_stdin_is_a_file_named_dash() -> None:
    done = attnc("mask", "-", "--shape", "n=2", stdin=b"pattern p = { q -> k : k <= q }\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "#.\n##\n", "")


def test_fmt_checks_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.attn"
    path.write_text("pattern   p={q->k:k<=q}", encoding="utf-8")
    assert invoke(["fmt", "--check", str(path)]) == 1
    assert "would reformat" in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == "pattern   p={q->k:k<=q}"
    assert invoke(["fmt", str(tmp_path)]) == 0
    assert path.read_text(encoding="utf-8") == "pattern p = { q -> k : k <= q }\n"
    assert invoke(["fmt", "--check", str(path)]) == 0
    assert list(tmp_path.iterdir()) == [path]


def test_fmt_of_stdin_goes_to_stdout() -> None:
    done = attnc("fmt", "-", stdin=b"pattern   p={q->k:k<=q}")
    assert (done.returncode, done.stdout) == (0, "pattern p = { q -> k : k <= q }\n")


def test_examples_and_zoo_are_formatted() -> None:
    assert invoke(["fmt", "--check", str(ROOT / "examples"), str(ROOT / "dsl" / "stdlib")]) == 0


@pytest.mark.parametrize("stage", ["ast", "pattern", "blocks", "plan", "triton"])
def test_emit_prints_a_stage(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["emit", LONGFORMER, "--stage", stage]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) > 3
    assert err == ""


def test_emit_counts_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["emit", "causal", "--stage", "blocks", "--tile", "64x64", "--shape", "n=256", "--json"]
    assert invoke(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["full"], found["partial"], found["empty"]) == (6, 4, 6)
    assert found["pairs_kept"] == 256 * 257 // 2
    assert found["tile"] == "64x64"


def test_compile_writes_a_module_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my_ops"
    args = ["compile", "causal", "--head-dim", "16", "--dtype", "fp32", "-o", str(folder)]
    assert invoke([*args, "--explain"]) == 0
    out, err = capsys.readouterr()
    assert out == f"wrote {folder / 'causal.py'}\n"
    assert err.startswith("note: ")
    code = (
        "import torch; from my_ops.causal import causal\n"
        "q = torch.randn(1, 2, 9, 16)\n"
        "o = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)\n"
        "assert (causal(q, q, q) - o).abs().max() < 1e-5\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["explain", "ATT0503"]) == 0
    one = capsys.readouterr().out
    assert "ATT0503" in one
    assert invoke(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 20


def test_zoo_text_is_a_file_that_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["zoo", "longformer"]) == 0
    path = tmp_path / "mine.attn"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert invoke(["check", str(path)]) == 0


def test_check_as_json(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["check", "--json", broken]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {entry["severity"] for entry in found} == {"error"}
    assert found[0]["line"] == 1
    assert found[0]["file"] == broken


def test_run_on_synthetic_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["run", LONGFORMER, "-D", "window=16", "--synthetic", "--heads", "2", "--head-dim", "16",
            "--shape", "n=131", "--rounds", "1", "--target", "cpu", "-o", str(tmp_path / "ops"),
            "--json"]  # fmt: skip
    assert invoke(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verified"] is True
    assert found["error"] <= found["error_allowed"]
    q, k = np.arange(131)[:, None], np.arange(131)[None, :]
    assert found["counts"]["pairs_kept"] == int(((abs(q - k) <= 8) | (k < 1) | (q < 1)).sum())
    assert found["module"] == str(tmp_path / "ops" / "longformer.py")
    assert Path(found["module"]).is_file()


def test_run_without_the_extra_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from attnc.runtime import inputs

    monkeypatch.setattr(inputs, "have_model", lambda: False)
    assert invoke(["run", "causal"]) == 1
    err = capsys.readouterr().err
    assert 'pip install "attnc[examples]"' in err
    assert "attnc run causal --synthetic" in err


# ------------------------------------------------------------------------------------ imports

TORCHLESS = [
    ["check", LONGFORMER],
    ["fmt", "--check", LONGFORMER],
    *(["emit", LONGFORMER, "--stage", stage] for stage in ("ast", "pattern", "blocks", "plan")),
    ["mask", LONGFORMER, "--shape", "n=8"],
    ["explain", "ATT0503"],
    ["zoo"],
    ["--help"],
]


@pytest.mark.parametrize("args", TORCHLESS, ids=lambda args: " ".join(args[:1] + args[2:]))
def test_verbs_that_need_no_torch_import_none(args: list[str]) -> None:
    code = (
        "import sys; from attnc.cli import invoke\n"
        "code = invoke(sys.argv[1:])\n"
        "loaded = sorted({'torch', 'triton', 'sympy', 'rich'} & set(sys.modules))\n"
        "assert not loaded, loaded\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_colour_stays_out_of_pipes_ci_and_no_color(
    monkeypatch: pytest.MonkeyPatch, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert invoke(["check", broken]) == 1
    plain = capsys.readouterr().err
    assert "\x1b" not in plain
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert invoke(["check", broken]) == 1
    coloured = capsys.readouterr().err
    assert "\x1b[" in coloured
    import click

    assert click.unstyle(coloured) == plain
    for variable in ("CI", "NO_COLOR"):
        monkeypatch.setenv(variable, "1")
        assert invoke(["check", broken]) == 1
        assert capsys.readouterr().err == plain
        monkeypatch.delenv(variable)


# ------------------------------------------------------------------------------ hostile input

HOSTILE = {
    "empty": b"",
    "nul": b"pattern p = { q -> k : k <= q }\x00",
    "not utf-8": b"pattern p = { q -> k : k <= \xff }",
    "bom and crlf": b"\xef\xbb\xbfpattern p = { q -> k : k <= q }\r\n",
    "too large": b"# " + b"x" * 300_000,
    "deep": b"pattern p = " + b"(" * 5000 + b"causal" + b")" * 5000,
    "long integer": b"pattern p = { q -> k : k <= " + b"9" * 5000 + b" }",
    "huge power": b"pattern p = { q -> k : k <= 2 ** 99999999999 }",
    "tower": b"pattern p = { q -> k : k <= 9 ** 9 ** 9 ** 9 }",
    "cycle": b"pattern p = r\npattern r = p\n",
    "other script": "pattern \u043f = { q -> k : k <= q }".encode(),
    "control": b"\x1b[31mpattern\x07",
    "import itself": b'import p from "p.attn"\npattern p = p',
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("verb", ["check", "emit"])
def test_hostile_files_give_a_result_or_diagnostics(
    case: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.attn"
    path.write_bytes(HOSTILE[case])
    code = invoke([verb, str(path)])
    err = capsys.readouterr().err
    assert code in (0, 1), err
    assert (code == 1) == ("error[ATT" in err)
    assert "ATT09" not in err
    assert "\x1b" not in err


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "x" * 5000, "..", "-"])
def test_hostile_file_names(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    assert invoke(["check", text]) in (0, 1)


def test_a_closed_stdout_is_no_error(tmp_path):
    command = f'"{sys.executable}" -m attnc check causal >&-'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mask_that_cannot_be_written_is_named(capsys, tmp_path):
    output = str(tmp_path / "missing" / "mask.npy")
    assert invoke(["mask", "causal", "--shape", "n=4", "-o", output]) == 1
    assert f"`{output}`" in capsys.readouterr().err


def test_emit_counts_at_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inputs say the length; without them the text says how tiles will be tested."""
    ids = tmp_path / "ids.npy"
    np.save(ids, np.repeat(np.arange(4), 64))
    args = ["emit", "document", "--tile", "64x64", "-I", f"doc_ids={ids}", "--json"]
    assert invoke(args) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["full"], record["partial"], record["empty"]) == (0, 4, 12)
    assert record["pairs_kept"] == 4 * 64 * 65 // 2
    assert invoke(["emit", "document", "--explain"]) == 0
    shown = capsys.readouterr()
    assert "#   query_0 = doc_ids[q]" in shown.out
    assert "note: tiles are told apart at the call: `doc_ids[q]` reads `doc_ids`" in shown.err
    assert invoke(["emit", "document", "--shape", "n=64"]) == 1
    assert "input `doc_ids` of `document` is missing" in capsys.readouterr().err
