"""The diagnostics 04xx (tiling and target), 05xx (command line and run time), 09xx (internal)."""

from __future__ import annotations

from attnc.dsl.diagnostics import Code

PLAN_CODES: tuple[Code, ...] = (
    Code(
        "ATT0405", "a plan that cannot be made",
        "The tile, the head dimension, the type or the target does not fit the kernels.",
        "Tile sides are powers of two from 16 up, and a tile must fit the shared memory of the "
        "target.",
        "attnc emit longformer.attn --tile 24x64",
        "attnc emit longformer.attn --tile 128x64",
    ),
    Code(
        "ATT0406", "a cost that cannot be predicted",
        "The cost model does not know the device, the kind of call or the shapes.",
        "GPUs are known by name; a CPU by a calibration, which measures it once, forward only.",
        "attnc cost causal --heads 6 --kv-heads 4",
        "attnc cost causal --heads 8 --kv-heads 4",
    ),
    Code(
        "ATT0407", "index arithmetic that may leave 64 bits",
        "An expression of the plan could leave 64-bit integers at the largest lengths.",
        "The written code computes indices with 64-bit integers and must never wrap.",
        "pattern p = { q -> k : 2**40 * q <= 2**40 * k }",
        "pattern p = { q -> k : q <= k }",
    ),
    Code(
        "ATT0408", "an `exists` without a formula",
        "isl found no formula that is equal to the `exists`, and its range is too long to write "
        "out as alternatives.",
        "A kernel checks a pair with a formula; it runs no search.",
        "pattern p = { q -> k : exists a in 0..n : "
        "(a + (a + (a + (a + (a + (q - a) div 3) div 5) div 7) div 9) div 11) div 13 == k }",
        "pattern p = { q -> k : (q - k) mod 3 == 0 }",
    ),
    Code(
        "ATT0409", "a condition too large for a kernel",
        "What a tile has to check has too many operations, or nests too deeply.",
        "Every pair of a partial tile evaluates the check, and compilers read it by recursion.",
        "pattern p = { q -> k : "
        "forall e in 1..3000 : q mod e == 0 or k mod e == 1 or q - k > 3 * e }",
        "pattern p = { q -> k : k == q }",
    ),
    Code(
        "ATT0410", "a mask outside integer linear arithmetic",
        "Run-time values are multiplied, or divide one another; or pairs of blocks are counted; or "
        "a coordinate is that of a grid whose extents are given at the call.",
        "Such a set is compiled as it stands, and its mask is exact. Only the tiles are not known "
        "to the compiler: they are found by the data at run time, which costs a little each time "
        "the lengths change. A product with a number or a parameter stays linear.",
        "pattern p = { q -> k : q * k < 64 }",
        "pattern p = { q -> k : 4 * q + k < 64 }",
    ),
    Code(
        "ATT0411", "an alignment of different spaces",
        "The pattern has its queries in another space than its keys, and its queries were asked to "
        "be the last tokens of the keys' sequence.",
        "An alignment moves positions along one sequence. Between two spaces the pattern itself "
        "says where a query stands.",
        "attnc emit agent_collect --align bottom-right",
        "attnc emit agent_collect",
    ),
    Code(
        "ATT0503", "no such file and no such zoo pattern",
        "The argument names neither a file nor a pattern of the library.",
        "A file ends in `.attn`; other words are looked up in the zoo.",
        "attnc check longfromer",
        "attnc check longformer",
    ),
    Code(
        "ATT0504", "`--pattern` with a zoo pattern",
        "A zoo name stands for one pattern, so there is nothing to choose.",
        "`--pattern` chooses among the patterns of a file.",
        "attnc check longformer --pattern causal",
        "attnc check causal",
    ),
    Code(
        "ATT0505", "another number of heads",
        "The pattern says how many heads it has, and `--heads` says something else.",
        "Its formula uses that number; a parameter may set it.",
        "attnc mask s2_attention --heads 5",
        "attnc mask s2_attention -D heads=8",
    ),
    Code(
        "ATT0506", "a dense mask that would not fit",
        "The dense mask takes more memory than a picture or a check is worth.",
        "It has one byte a pair; the block mask has the same content in a few lines.",
        "attnc mask causal --shape n=1048576",
        "attnc emit causal --stage blocks --shape n=1048576",
    ),
    Code(
        "ATT0507", "a package that is missing",
        "The command needs torch or triton, which are optional.",
        "Checking, formatting, planning and costs work without them.",
        "attnc run longformer.attn",
        'pip install "attnc[torch]"',
    ),
    Code(
        "ATT0508", "another length than the space has",
        "The pattern is on grids of known extents, and the number of tokens is another one.",
        "The extents fix the lengths; parameters may set them.",
        "attnc mask swin -D h=8 -D w=8 --shape n=100",
        "attnc mask swin -D h=8 -D w=8",
    ),
    Code(
        "ATT0509", "sides that do not agree",
        "Two inputs, or an input and a length or a number of heads, have different sizes for one "
        "name.",
        "`int[heads, n]` and `bool[n, n]` speak of one `n`.",
        "attnc mask document -I doc_ids=[0,0,1] --shape n=4",
        "attnc mask document -I doc_ids=[0,0,1,1] --shape n=4",
    ),
    Code(
        "ATT0510", "an input that is missing",
        "The pattern reads a tensor that was not given.",
        "Inputs are data: they are given with the call, and only those with a formula are "
        "computed.",
        "attnc mask document --shape n=4",
        "attnc mask document -I doc_ids=[0,0,1,1] --shape n=4",
    ),
    Code(
        "ATT0511", "an input of the wrong type or shape",
        "The array has other elements, or another number of axes, than the input that was "
        "declared.",
        "Ints are ints, truth values are bool (or 0 and 1), and every axis counts.",
        "attnc mask document -I doc_ids=[0.5,1] --shape n=2",
        "attnc mask document -I doc_ids=[0,1] --shape n=2",
    ),
    Code(
        "ATT0512", "a layer that does not exist",
        "The pattern has fewer layers, or none.",
        "`layers l: 26` counts from 0; a pattern without it is the same in all layers.",
        "attnc mask interleaved_layers --shape n=8 --layer 26",
        "attnc mask interleaved_layers --shape n=8 --layer 25",
    ),
    Code(
        "ATT0901", "an error in attnc itself",
        "The compiler came to a state that must not happen. Your pattern is not to blame.",
        "Please report it with the command, the file and the text of the error.",
        "any command",
        "report it",
    ),
)
