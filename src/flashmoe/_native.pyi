"""
Kernels, disk reader and slot memory: bytes, pointers and shapes; no models, no policy.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


class Pool:
    """Worker threads of a fixed number; the caller is one of them."""

    def __init__(self, threads: int) -> None: ...

    @property
    def threads(self) -> int: ...

def isa() -> str:
    """The instruction set of the kernels in use."""

def available_isas() -> list[str]:
    """What this machine can run, slowest first."""

def select_isa(name: str) -> None:
    """
    Use the kernels of one instruction set ('auto': the best) in the whole process.
    """

class Matrix:
    """A stored weight matrix [rows, cols]; keeps its bytes alive."""

    def __init__(self, format: str, group: int, rows: int, cols: int, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    @property
    def format(self) -> str: ...

    @property
    def group(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def cols(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

def block_formats() -> list[tuple[str, int, int]]:
    """(name, columns of a run, bytes of a run) of each block format."""

def encode(pool: Pool, format: str, group: int, source: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], dtype: str, rows: int, cols: int, out: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """
    Encode row-major weights, given as bytes of dtype 'bf16', 'f16' or 'f32'.

    ValueError names row and column of a weight that the format cannot hold.
    """

def embed(pool: Pool, matrix: Matrix, ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
    """out[i] = decoded row ids[i] of the matrix."""

def dequantize(pool: Pool, matrix: Matrix, out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
    """out [rows, cols] = the weights that the bytes mean."""

class Activations:
    """
    Input rows of matrix products and workspaces, in reused buffers; for one call at a time.
    """

    def __init__(self) -> None: ...

    def assign(self, pool: Pool, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], group: int) -> None:
        """
        Take x [T, K], kept alive, as input; quantise it to int8 by group (0: do not).
        """

class ExpertLayout:
    """Formats and shapes inside one expert record."""

    def __init__(self, gate_up_format: str, gate_up_group: int, down_format: str, down_group: int, hidden_size: int, intermediate_size: int, down_offset: int, activation: str = 'swiglu', bias_offset: int = 0) -> None: ...

    @property
    def down_offset(self) -> int: ...

    @property
    def record_bytes_used(self) -> int: ...

def linear(pool: Pool, acts: Activations, matrices: Sequence[Matrix], outs: Sequence[Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]], accumulate: bool = False) -> None:
    """
    outs[i] [T, rows_i] (+)= x @ matrices[i].T, all in one parallel region.
    """

def head_linear(pool: Pool, acts: Activations, matrix: Matrix, out: Annotated[NDArray, dict(device='cpu')]) -> None:
    """
    A linear map per head: out[t, h] = matrix[h * N : (h + 1) * N] @ x[t * heads + h].
    x f32 [T * heads, K] as assigned; matrix [heads * N, K], N a multiple of 8; out f32
    [T, heads, N], any strides on T and heads.
    """

def ffn(pool: Pool, acts: Activations, gate_up: Matrix, down: Matrix, out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], scale: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, activation: str = 'swiglu') -> None:
    """
    out [T, H] += scale [T] * activation(gate, up) @ down.T; gate and up rows alternate by 8.
    """

def moe_ffn(pool: Pool, acts: Activations, layout: ExpertLayout, addresses: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], dests: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
    """
    Apply the expert record at addresses[i] to rows tokens[offsets[i]:offsets[i + 1]];
    entry j is written, unweighted, to out[dests[j]].
    """

def rms_norm(pool: Pool, x: Annotated[NDArray, dict(device='cpu', writable=False)], weight: Annotated[NDArray, dict(device='cpu', writable=False)], eps: float, out: Annotated[NDArray, dict(device='cpu')]) -> None:
    """
    out = x / sqrt(mean(x^2) + eps) * weight. x, out f32 [T, D]; weight f32 [D].
    """

def gated_rms_norm(pool: Pool, x: Annotated[NDArray, dict(device='cpu')], gate: Annotated[NDArray, dict(device='cpu', writable=False)], weight: Annotated[NDArray, dict(device='cpu', writable=False)], eps: float) -> None:
    """
    In place: x = rms(x) * weight * silu(gate). x, gate f32 [N, D]; weight f32 [D].
    """

def head_norm_rope(pool: Pool, x: Annotated[NDArray, dict(device='cpu', writable=False)], weight: Annotated[NDArray, dict(device='cpu', writable=False)] | None, eps: float, cos: Annotated[NDArray, dict(device='cpu', writable=False)], sin: Annotated[NDArray, dict(device='cpu', writable=False)], out: Annotated[NDArray, dict(device='cpu')]) -> None:
    """
    Per-head RMS norm (left out if weight is None), then half-split rope on the first R dims.
    x f32 [T, H, D], any strides on T and H; weight f32 [D]; cos, sin f32 [T, R / 2];
    out f32 [T, H, D], any strides on T and H.
    """

def sigmoid_gate(pool: Pool, x: Annotated[NDArray, dict(device='cpu')], gate: Annotated[NDArray, dict(device='cpu', writable=False)]) -> None:
    """
    In place: x *= sigmoid(gate). x f32 [T, H, D]; gate f32 [T, H, D], any strides on T and H.
    """

def sigmoid(x: Annotated[NDArray, dict(device='cpu', writable=False)], out: Annotated[NDArray, dict(device='cpu')]) -> None:
    """out = 1 / (1 + exp(-x)). x, out f32 [T, N]."""

def all_finite(x: Annotated[NDArray, dict(device='cpu', writable=False)]) -> bool:
    """Whether no element of x f32 [T, N] is NaN or infinite."""

def causal_conv_silu(pool: Pool, u: Annotated[NDArray, dict(device='cpu', writable=False)], weight: Annotated[NDArray, dict(device='cpu', writable=False)], state: Annotated[NDArray, dict(device='cpu')], out: Annotated[NDArray, dict(device='cpu')]) -> None:
    """
    out[t] = silu(sum_j weight[:, j] * u[t - W + 1 + j]). u, out f32 [T, C]; weight f32 [C, W],
    2 <= W <= 8; state f32 [W - 1, C]: the inputs before u, oldest first, updated.
    """

def softmax_topk(logits: Annotated[NDArray, dict(device='cpu', writable=False)], ids: Annotated[NDArray, dict(device='cpu')], weights: Annotated[NDArray, dict(device='cpu')], renormalize: bool, scale: float) -> None:
    """
    The K largest of softmax(logits), sorted; equal ones: the lower id first. logits f32 [T, E];
    ids i32 [T, K]; weights f32 [T, K], divided by their sum if renormalize, times scale.
    """

def sigmoid_topk(logits: Annotated[NDArray, dict(device='cpu', writable=False)], correction: Annotated[NDArray, dict(device='cpu', writable=False)], groups: int, chosen_groups: int, ids: Annotated[NDArray, dict(device='cpu')], weights: Annotated[NDArray, dict(device='cpu')], renormalize: bool, scale: float) -> None:
    """
    The K experts of largest sigmoid(logits) + correction out of the chosen_groups groups of
    experts whose two best have the largest sum; equal ones: the lower first. logits f32 [T, E];
    correction f32 [E]; ids i32 [T, K]; weights f32 [T, K]: the sigmoids, divided by their sum
    if renormalize, times scale.
    """

def combine(pool: Pool, rows: Annotated[NDArray, dict(device='cpu', writable=False)], weights: Annotated[NDArray, dict(device='cpu', writable=False)], out: Annotated[NDArray, dict(device='cpu')]) -> None:
    """
    out[t] += sum_k weights[t, k] * rows[t * K + k], k ascending. rows f32 [T * K, H];
    weights f32 [T, K]; out f32 [T, H].
    """

def kv_store(pool: Pool, k: Annotated[NDArray, dict(device='cpu', writable=False)], v: Annotated[NDArray, dict(device='cpu', writable=False)], k_cache: Annotated[NDArray, dict(device='cpu')], v_cache: Annotated[NDArray, dict(device='cpu')], start: int, window: int = 0) -> None:
    """
    Copies k f32 [T, Hkv, D] and v f32 [T, Hkv, Dv] to positions start.. of the caches f32 or f16
    [Hkv, ctx, D] and [Hkv, ctx, Dv], whose rows may lie apart.
    With a window: position p at p % ctx, ctx a multiple of 64 and at least T + window - 1.
    """

def attention(pool: Pool, q: Annotated[NDArray, dict(device='cpu', writable=False)], k_cache: Annotated[NDArray, dict(device='cpu', writable=False)], v_cache: Annotated[NDArray, dict(device='cpu', writable=False)], start: int, scale: float, out: Annotated[NDArray, dict(device='cpu')], window: int = 0, sinks: Annotated[NDArray, dict(device='cpu', writable=False)] | None = None) -> None:
    """
    Causal grouped-query attention: query t, at position start + t, sees keys 0..start + t,
    with a window the last `window` of them only, in caches as kv_store fills them then.
    sinks f32 [Hq]: scores of a further key per head, whose value is zero.
    q f32 [T, Hq, D], out f32 [T, Hq, Dv]; caches f32 or f16 [Hkv, ctx, D] and [Hkv, ctx, Dv],
    whose rows may lie apart or share memory; query head h uses kv head h // (Hq / Hkv).
    """

def index_topk(pool: Pool, q: Annotated[NDArray, dict(device='cpu', writable=False)], weights: Annotated[NDArray, dict(device='cpu', writable=False)], keys: Annotated[NDArray, dict(device='cpu', writable=False)], seen: Annotated[NDArray, dict(device='cpu', writable=False)], ids: Annotated[NDArray, dict(device='cpu')]) -> None:
    """
    ids i32 [T, k]: of keys 0..seen[t] - 1 the k with the largest sum over h of
    weights[t, h] * max(0, q[t, h] . key), ascending; equal ones: the earlier; -1 where fewer
    are seen. q f32 [T, Hi, Di], weights f32 [T, Hi], keys f32 or f16 [ctx, Di], seen i32 [T].
    """

def gated_delta(pool: Pool, qkv: Annotated[NDArray, dict(device='cpu', writable=False)], a: Annotated[NDArray, dict(device='cpu', writable=False)], b: Annotated[NDArray, dict(device='cpu', writable=False)], a_log: Annotated[NDArray, dict(device='cpu', writable=False)], dt_bias: Annotated[NDArray, dict(device='cpu', writable=False)], state: Annotated[NDArray, dict(device='cpu')], out: Annotated[NDArray, dict(device='cpu')], chunk: int) -> None:
    """
    The gated delta rule with its q, k normalisation and gates (see native/cpu/delta/delta.h).
    qkv f32 [T, 2 * Hk * Dk + Hv * Dv]; a, b f32 [T, Hv]; a_log, dt_bias f32 [Hv];
    state f32 [Hv, Dk, Dv], updated; out f32 [T, Hv, Dv]; chunk 0: token by token, else the
    tokens of one chunk (at most 128): faster on prompts, equal up to rounding.
    """

class Lookup:
    """ids i32 [1, K] to look up, found u64 [K] to fill; kept alive."""

    def __init__(self, ids: Annotated[NDArray, dict(device='cpu')], found: Annotated[NDArray, dict(device='cpu')]) -> None: ...

class ResidentTable:
    """Addresses of resident experts, by layer."""

    def __init__(self, experts: int) -> None: ...

    def put(self, layer: int, expert: int, address: int) -> None:
        """The expert lies there from now on; 0: nowhere."""

    def find(self, layer: int, lookup: Lookup) -> bool:
        """
        Whether all ids are resident: then `found` is filled and their uses are noted.
        """

    @property
    def uses(self) -> int:
        """How many uses are noted."""

    def take_uses(self) -> list[tuple[int, int]]:
        """The (layer, expert) uses since the last call, in order."""

    def take_hits(self) -> int:
        """How many uses were noted since the last call."""

class PartSpace:
    """Work space of layer parts; for one call at a time."""

    def __init__(self) -> None: ...

    @property
    def nbytes(self) -> int: ...

class FloatRows:
    """A checked view of f32 [rows, cols], kept alive."""

    def __init__(self, array: Annotated[NDArray, dict(device='cpu')]) -> None: ...

class RopeView:
    """cos and sin f32 [T, R / 2] of the tokens of a pass."""

    def __init__(self, cos: Annotated[NDArray, dict(device='cpu', writable=False)], sin: Annotated[NDArray, dict(device='cpu', writable=False)]) -> None: ...

class KvView:
    """Keys and values f32 or f16 [Hkv, ctx, D] of a sequence."""

    def __init__(self, k: Annotated[NDArray, dict(device='cpu')], v: Annotated[NDArray, dict(device='cpu')]) -> None: ...

class DeltaView:
    """conv f32 [W - 1, C] and state f32 [Hv, Dk, Dv] of a sequence."""

    def __init__(self, conv: Annotated[NDArray, dict(device='cpu')], state: Annotated[NDArray, dict(device='cpu')]) -> None: ...

class AttentionPart:
    """Weights of one attention layer, kept alive."""

    def __init__(self, norm: Annotated[NDArray, dict(device='cpu', writable=False)], eps: float, q: Matrix, k: Matrix, v: Matrix, o: Matrix, q_norm: Annotated[NDArray, dict(device='cpu', writable=False)] | None, k_norm: Annotated[NDArray, dict(device='cpu', writable=False)] | None, head_dim: int, scale: float, gated: bool, q_bias: Annotated[NDArray, dict(device='cpu', writable=False)] | None = None, k_bias: Annotated[NDArray, dict(device='cpu', writable=False)] | None = None, v_bias: Annotated[NDArray, dict(device='cpu', writable=False)] | None = None, o_bias: Annotated[NDArray, dict(device='cpu', writable=False)] | None = None, sinks: Annotated[NDArray, dict(device='cpu', writable=False)] | None = None, window: int = 0) -> None: ...

    def add_to(self, pool: Pool, space: PartSpace, h: FloatRows, rope: RopeView, spans: Sequence[tuple[int, int, int, KvView]]) -> float:
        """
        h [T, H] += attention of norm(h) -> seconds; spans: (begin, end, start, cache).
        """

class DeltaPart:
    """Weights of one gated delta layer, kept alive."""

    def __init__(self, norm: Annotated[NDArray, dict(device='cpu', writable=False)], eps: float, qkv: Matrix, z: Matrix, a: Matrix, b: Matrix, out: Matrix, conv1d: Annotated[NDArray, dict(device='cpu', writable=False)], a_log: Annotated[NDArray, dict(device='cpu', writable=False)], dt_bias: Annotated[NDArray, dict(device='cpu', writable=False)], gated_norm: Annotated[NDArray, dict(device='cpu', writable=False)], key_heads: int) -> None: ...

    def add_to(self, pool: Pool, space: PartSpace, h: FloatRows, spans: Sequence[tuple[int, int, int, DeltaView]]) -> float:
        """
        h [T, H] += gated delta rule of norm(h) -> seconds; spans: (begin, end, start, state).
        """

class RoutedView:
    """Where a router writes: x f32 [T, H], ids i32 and weights f32 [T, K]."""

    def __init__(self, x: Annotated[NDArray, dict(device='cpu')], ids: Annotated[NDArray, dict(device='cpu')], weights: Annotated[NDArray, dict(device='cpu')]) -> None: ...

class RouterPart:
    """
    Weights of one router, kept alive: a softmax, or
    with a correction f32 [E] a sigmoid (see sigmoid_topk).
    """

    def __init__(self, norm: Annotated[NDArray, dict(device='cpu', writable=False)], eps: float, gate: Matrix, topk: int, renormalize: bool, bias: Annotated[NDArray, dict(device='cpu', writable=False)] | None = None, correction: Annotated[NDArray, dict(device='cpu', writable=False)] | None = None, groups: int = 1, chosen_groups: int = 1, scale: float = 1.0) -> None: ...

    def route(self, pool: Pool, space: PartSpace, h: FloatRows, out: RoutedView) -> float:
        """x = norm(h); its topk experts and their weights -> seconds."""

    def route_ahead(self, pool: Pool, space: PartSpace, h: FloatRows, out: RoutedView) -> float:
        """Only the ids, of the experts that h would get here."""

class SharedPart:
    """Weights of one shared expert, kept alive."""

    def __init__(self, gate_up: Matrix, down: Matrix, gate: Matrix | None) -> None: ...

    def add_to(self, pool: Pool, space: PartSpace, x: FloatRows, h: FloatRows) -> float:
        """
        h [T, H] += sigmoid(x . gate) * SwiGLU(x), the factor if there is a gate -> seconds.
        """

class TokenMoePart:
    """One layer's router and experts, for a token that misses none."""

    def __init__(self, router: RouterPart, shared: SharedPart | None, table: ResidentTable, layer: int, layout: ExpertLayout) -> None: ...

    def add_to(self, pool: Pool, space: PartSpace, h: FloatRows, out: RoutedView) -> tuple[bool, float, float, float]:
        """
        Route h [1, H]; where all experts are resident, note their uses and h += shared and routed experts -> (whether they are, seconds of router, shared, routed experts).
        """

class RecordsView:
    """Addresses u64 [K] of expert records, kept alive."""

    def __init__(self, addresses: Annotated[NDArray, dict(device='cpu')]) -> None: ...

class HeadPart:
    """Final norm and output matrix, kept alive."""

    def __init__(self, norm: Annotated[NDArray, dict(device='cpu', writable=False)], eps: float, lm_head: Matrix) -> None: ...

    def logits(self, pool: Pool, space: PartSpace, h: FloatRows, out: FloatRows) -> float:
        """out [T, vocab] = norm(h) @ lm_head.T -> seconds."""

def add_token_experts(pool: Pool, space: PartSpace, layout: ExpertLayout, x: FloatRows, records: RecordsView, weights: FloatRows, h: FloatRows) -> float:
    """
    h [1, H] += sum over k, ascending, of weights[k] * expert k (x) -> seconds; its record is
    at records[k].
    """

def read_sum(pool: Pool, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int:
    """
    Sum of the 8-byte words of data (whole 128-byte lines of it), modulo 2^64: read bandwidth.
    """

def int8_work(pool: Pool, rounds: int) -> int:
    """
    Run int8 multiply-adds in registers on every thread; returns the operations done.
    """

def float_work(pool: Pool, rounds: int) -> int:
    """
    Run float32 multiply-adds in registers on every thread; returns the operations done.
    """

class LandingProgram:
    """
    How bytes of a checkpoint become a record; see flashmoe.store.landing for the fields.
    """

    def __init__(self, record_bytes: int, moves: Sequence[tuple[str, str, int, int, int, int, int, int, int, int, int, int]], mxfp4: Sequence[tuple[int, int]], zeros: Sequence[tuple[int, int]]) -> None: ...

    def run(self, slices: Sequence[tuple[int, int, int, int]], read: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], record: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> bool:
        """
        Slices (move, first block, blocks, where in read); False: a number is not finite.
        """

    def settle(self, record: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> int:
        """
        After all slices: index of a blob with a number that is not finite, or -1.
        """

class Landing:
    """
    An expert of a checkpoint. pieces: (handle, offset, nbytes, bytes that must be there, slices); offset and nbytes in whole pages.
    """

    def __init__(self, program: LandingProgram, pieces: Sequence[tuple[int, int, int, int, Sequence[tuple[int, int, int, int]]]]) -> None: ...

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""

class Arena:
    """
    Memory for weights, 2 MiB aligned. threads: that make it resident; 0: nobody yet.
    """

    def __init__(self, nbytes: int, huge_pages: bool = True, threads: int = 1) -> None: ...

    @property
    def address(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def huge(self) -> bool:
        """Whether the kernel took the advice to use huge pages."""

    def huge_bytes(self) -> int:
        """Bytes that are in huge pages now."""

    def populate(self, offset: int, nbytes: int, threads: int = 1) -> None:
        """Make a part resident; raises MemoryError."""

    def release(self, offset: int, nbytes: int) -> None:
        """
        Give the whole pages of a part back to the system; they are zeros when next read.
        """

    def lock(self) -> None:
        """Keep in memory what is or becomes resident; raises OSError."""

    def view(self, offset: int, nbytes: int) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """uint8 [nbytes] of the arena, without a copy; keeps the arena alive."""

class Reader:
    """Threads that read blocks of files into given memory."""

    def __init__(self, threads: int, verify: bool = True, demand_piece: int = 8388608, guess_piece: int = 524288, guess_depth: int = 8, guess_below: int = 2) -> None:
        """
        Reads are cut into pieces of so many bytes. Guesses: at most guess_depth pieces at a time, while fewer than guess_below pieces of demands are being read.
        """

    def open(self, path: str, direct: bool = True) -> int:
        """
        Returns a handle; raises OSError. direct: past the page cache where that is possible.
        """

    def direct(self, handle: int) -> bool:
        """Whether reads go past the page cache."""

    def close_file(self, handle: int) -> None: ...

    def submit(self, tag: int, handle: int, offset: int, nbytes: int, address: int, crc: int | None = None) -> None:
        """Queue a read; the memory must stay until it has landed."""

    def submit_many(self, reads: Sequence[tuple[int, int, int, int, int, int | None]], guess: bool = False) -> None:
        """
        Queue reads, tuples of the arguments of submit; all or, where one is refused, none. Guesses are read only while the disk is idle.
        """

    def submit_landings(self, reads: Sequence[tuple[int, Landing, int]], guess: bool = False) -> None:
        """
        Queue experts of a checkpoint, (tag, landing, address of the record), as submit_many.
        """

    def keep_guesses(self, tags: Sequence[int]) -> None:
        """
        Guesses with these tags become demands; all others are dropped, without waiting.
        """

    def wait(self, timeout_s: float) -> list[tuple[int, int, int]]:
        """
        [(tag, status, detail)] of what has landed; blocks until a demand has, or none is left. Status: 0 good, > 0 errno, -1 short (detail: bytes got), -2 bad checksum (detail: the one found), -3 cancelled (detail: bytes read in vain). Of landings the detail is the index of the piece, where -4 means that the file has changed; after -5 (a weight is not finite) that of the move, or of all moves and then the blob.
        """

    def cancel(self) -> None:
        """Drop what has not started, wait for the rest."""

    def stats(self) -> dict[str, float]:
        """
        bytes, reads, raw_bytes (cancelled reads too); busy_s, cpu_s, checksum_s (summed over threads), landing_s (turning bytes into records); reading_s (in which something was being read).
        """

def crc32c(buffer: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], crc: int = 0, portable: bool = False) -> int:
    """
    CRC-32C of bytes or a uint8 array, continuing crc; portable: without SSE4.2.
    """
