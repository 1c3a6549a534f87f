"""What runs in the peer's Python: writes the GGUF twin, runs llama.cpp. Imports none of flashmoe.

    python -I peer.py write | run | routing

A request comes as one JSON line on standard input; events go out as JSON lines: progress, then one
result or error. Packages are imported when they are needed, so that their absence is an event too.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Request = dict[str, Any]
Emit = Callable[[str, Any], None]

# Most tokens in one call; a prompt of 512 goes through in micro batches of that size or smaller.
_BATCH = 512
_LOAD_MODES = {"mmap": 1, "read": 0, "repack": 0}


def serve(verbs: dict[str, Callable[[Request, Emit], dict[str, Any]]]) -> int:
    """Read the request, run the verb that the command line names, write its events."""
    request, emit = json.loads(sys.stdin.readline()), _event_stream()
    try:
        emit("result", verbs[sys.argv[1]](request, emit))
    except ImportError as error:
        emit("missing", error.name)
    except Exception as error:  # noqa: BLE001 - whatever it was, the parent process shows it
        traceback.print_exc()
        emit("error", f"{type(error).__name__}: {error}")
    return 0


def _event_stream() -> Emit:
    """Events go to the real standard output; what libraries print there goes to the errors."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def emit(event: str, value: Any) -> None:
        stream.write(json.dumps({"event": event, "value": value}) + "\n")
        stream.flush()

    return emit


def read_bytes() -> int:
    """Bytes that the disk has delivered to this process, page faults and read-ahead included."""
    with open("/proc/self/io") as lines:
        fields = dict(line.split(": ") for line in lines)
    return int(fields["read_bytes"])


def peak_bytes() -> int:
    """The most memory that was resident at a time, mapped files included."""
    with open("/proc/self/status") as lines:
        line = next(line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def timed(work: Callable[[], None], tokens: int) -> dict[str, Any]:
    """Run work -> the figures that both engines report."""
    read, cpu, start = read_bytes(), time.process_time(), time.perf_counter()
    work()
    return {
        "tokens": tokens,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "disk_bytes": read_bytes() - read,
    }


# The twin.


def write(plan: Request, emit: Emit) -> dict[str, Any]:
    """Write the GGUF file of a plan; see flashmoe.bench.compare.twin."""
    import gguf

    writer = gguf.GGUFWriter(plan["path"], plan["architecture"])
    for key, value in plan["integers"].items():
        writer.add_uint32(key, value)
    for key, value in plan["numbers"].items():
        writer.add_float32(key, value)
    _add_tokenizer(writer, gguf, plan["tokens"])
    for tensor in plan["tensors"]:
        _declare(writer, gguf, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    block = NormalBlock(plan["block_weights"], plan["seed"])
    for number, tensor in enumerate(plan["tensors"]):
        emit("progress", f"writing tensor {number + 1} of {len(plan['tensors'])}")
        writer.write_tensor_data(block.data(tensor))
    writer.close()
    with open(plan["path"], "rb") as file:
        os.fsync(file.fileno())  # pages that are not written yet cannot be dropped
    return {"bytes": os.path.getsize(plan["path"])}


def _add_tokenizer(writer: Any, gguf: Any, tokens: Sequence[str]) -> None:
    """A byte-level BPE of made-up tokens; llama.cpp insists on having merges."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])


def _declare(writer: Any, gguf: Any, tensor: dict[str, Any]) -> None:
    import numpy as np

    kind = gguf.GGMLQuantizationType[tensor["format"]]
    nbytes = tensor_bytes(tensor["format"], tensor["shape"])
    # A float32 dtype makes the writer take the shape as it stands, in weights.
    writer.add_tensor_info(tensor["name"], tensor["shape"], np.dtype("f4"), nbytes, raw_dtype=kind)


# Format -> (weights, bytes) of a block.
BLOCKS = {"F32": (1, 4), "Q8_0": (32, 34), "Q4_0": (32, 18)}


def tensor_bytes(format: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor whose last dimension is whole blocks."""
    weights, nbytes = BLOCKS[format]
    count = 1
    for size in shape:
        count *= size
    return count // weights * nbytes


class NormalBlock:
    """Normally distributed weights, encoded once per format and variance; tensors are slices."""

    def __init__(self, weights: int, seed: int) -> None:
        import numpy as np

        self._weights = np.random.default_rng(seed).standard_normal(weights, dtype=np.float32)
        self._encoded: dict[tuple[str, int], Any] = {}

    def data(self, tensor: dict[str, Any]) -> Any:
        """The bytes of a tensor, uint8: a constant, or a slice for each of its starts."""
        import numpy as np

        format, shape = tensor["format"], tensor["shape"]
        if tensor["constant"] is not None:
            return np.full(shape, tensor["constant"], dtype=np.float32).view(np.uint8)
        blocks = self._blocks(format, tensor["divisor"])
        weights, nbytes = BLOCKS[format]
        count = tensor_bytes(format, shape) // nbytes // len(tensor["starts"])
        first = [start // weights for start in tensor["starts"]]
        return np.concatenate([_cyclic(blocks, start, count) for start in first]).reshape(-1)

    def _blocks(self, format: str, divisor: int) -> Any:
        """All weights of one variance -> uint8 [blocks, bytes of a block]."""
        import gguf
        import numpy as np

        if (format, divisor) not in self._encoded:
            kind = gguf.GGMLQuantizationType[format]
            weights = self._weights / np.float32(divisor**0.5)
            encoded = gguf.quants.quantize(weights, kind).view(np.uint8)
            self._encoded[format, divisor] = encoded.reshape(-1, BLOCKS[format][1])
        return self._encoded[format, divisor]


def _cyclic(blocks: Any, start: int, count: int) -> Any:
    """count blocks from start on, round and round."""
    import numpy as np

    parts = []
    while count:
        part = blocks[start : start + count]
        parts.append(part)
        start, count = 0, count - len(part)
    return np.concatenate(parts)


# The engine.


class Llama:
    """llama.cpp with a model and one sequence."""

    def __init__(self, request: Request, on_node: Any = None) -> None:
        import llama_cpp

        self._lib = llama_cpp
        settings = request["settings"]
        llama_cpp.llama_backend_init()
        self._model = self._load(request["model"], settings["memory"])
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = request["context_length"]
        params.n_batch, params.n_ubatch = _BATCH, settings["micro_batch"]
        params.n_outputs_max = 1
        params.n_threads = params.n_threads_batch = request["threads"]
        params.flash_attn_type = int(settings["flash_attention"])
        if on_node is not None:
            params.cb_eval = on_node
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp made no context")

    def _load(self, path: str, memory: str) -> Any:
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = _LOAD_MODES[memory]
        params.use_extra_bufts = memory == "repack"
        model = self._lib.llama_model_load_from_file(path.encode(), params)
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        return model

    def restart(self) -> None:
        """Forget the sequence."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)

    def feed(self, ids: Sequence[int]) -> None:
        """Run ids after what was fed before; the logits of the last one are ready on return."""
        tokens = (self._lib.llama_token * len(ids))(*ids)
        batch = self._lib.llama_batch_get_one(tokens, len(ids))
        status = self._lib.llama_decode(self._context, batch)
        if status or not self._lib.llama_get_logits_ith(self._context, -1):
            raise RuntimeError(f"llama_decode failed with status {status}")

    def feed_singly(self, ids: Sequence[int]) -> None:
        """Feed ids one by one."""
        for id in ids:
            self.feed([id])


def run(request: Request, emit: Emit) -> dict[str, Any]:
    """Run the request of flashmoe.bench.compare.engines with llama.cpp."""
    emit("progress", "llama.cpp: loading")
    start = time.perf_counter()
    engine = Llama(request)
    load_seconds = time.perf_counter() - start
    emit("progress", "llama.cpp: warming up")
    # Its weights are in memory as soon as the model is loaded: it needs no prompts to fill it.
    feed = engine.feed if request["kind"] == "prefill" else engine.feed_singly
    feed(request["warm_up"])
    if request["kind"] == "prefill":
        engine.restart()
    emit("progress", "llama.cpp: measuring")
    figures = timed(lambda: feed(request["ids"]), len(request["ids"]))
    return {
        **figures,
        "load_seconds": load_seconds,
        "peak_bytes": peak_bytes(),
        **_build(),
    }


def _build() -> dict[str, str]:
    """Version, and the instruction sets and parts that it was built with and finds here."""
    import llama_cpp

    return {
        "version": f"llama-cpp-python {llama_cpp.__version__}",
        "cpu": llama_cpp.llama_print_system_info().decode().strip(),
    }


def routing(request: Request, emit: Emit) -> dict[str, Any]:
    """How many experts each layer used for the request's ids, and what llama.cpp is."""
    used: dict[str, set[int]] = {}
    with _chosen_experts(request["experts_per_token"], used) as on_node:
        Llama(request, on_node).feed_singly(request["ids"])
    return {"distinct": [len(used[name]) for name in used], **_build()}


@contextmanager
def _chosen_experts(count: int, used: dict[str, set[int]]) -> Iterator[Any]:
    """A callback for llama.cpp's graph that collects the ids in its "ffn_moe_topk-N" nodes.

    Only for steps of one token: then the ids are the first `count` integers of the node.
    """
    from pathlib import Path

    import llama_cpp
    from llama_cpp.llama_cpp import ggml_backend_sched_eval_callback

    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_get_name.restype, ggml.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    ggml.ggml_get_data.restype, ggml.ggml_get_data.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

    def on_node(tensor: int, ask: bool, _: Any) -> bool:
        name = ggml.ggml_get_name(tensor).decode()
        wanted = name.startswith("ffn_moe_topk-")
        if wanted and not ask:
            ids = (ctypes.c_int32 * count).from_address(ggml.ggml_get_data(tensor))
            used.setdefault(name, set()).update(ids)
        return wanted or not ask

    yield ggml_backend_sched_eval_callback(on_node)


if __name__ == "__main__":
    sys.exit(serve({"write": write, "run": run, "routing": routing}))
