"""Times the official PyTorch code in its own environment; started by `experiments.benchmark`.

It must run where only PyTorch and transformers are installed, so it imports nothing of ours.

  PYTHON experiments/speed/reference_runner.py DIR step '{"context_tokens": 225, ...}'
"""

import argparse
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

IGNORE = -100
TARGET_TOKENS = 4
ROPE_BASE = 500_000.0


def process_peak_bytes() -> int:
    """Peak memory of this process so far."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held, too
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_mib(torch: Any, device: str) -> int:
    """Peak memory so far: of the accelerator, or of this process on CPU."""
    if device != "cpu":
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(process_peak_bytes() / 2**20)


def build(official: Any, transformers: Any, setting: dict[str, Any], mode: str) -> Any:
    """The official model of the setting's sizes; `mode` is its grad_mode."""
    heads = setting["num_heads"]
    base = transformers.LlamaConfig(
        vocab_size=setting["vocab_size"],
        hidden_size=setting["width"],
        intermediate_size=setting["mlp_width"] or 4 * setting["width"],
        num_hidden_layers=setting["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=setting["num_kv_heads"] or heads,
        head_dim=setting["width"] // heads,
        max_position_embeddings=setting["context_tokens"] + 512,
        rope_theta=ROPE_BASE,
        tie_word_embeddings=setting["tied_head"],
        pad_token_id=0,
        use_cache=False,
    )
    config = official.GradMemGPTConfig(
        base_config=base,
        n_mem_tokens=setting["num_memory_tokens"],
        K=setting["write_steps"],
        lr=0.4,
        grad_mode=mode,
        use_write_head=True,
        attn_implementation="eager",
    )
    return official.GradMemGPT(config)


def median_seconds(function: Callable[[], Any], repeats: int, finish: Callable[[], Any]) -> float:
    """Median time of a call, after one that is not counted."""
    seconds = []
    for _ in range(1 + max(repeats, 1)):
        started = time.perf_counter()
        function()
        finish()
        seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds[1:]), 5)


def run(torch: Any, official: Any, transformers: Any, arguments: Any) -> dict[str, Any]:
    """Times training steps, or WRITE and READ, of the setting."""
    setting, device = json.loads(arguments.setting), arguments.device
    torch.manual_seed(0)
    shape = (setting["batch_size"], setting["query_tokens"])
    vocab_size = setting["vocab_size"]
    contexts = torch.randint(1, vocab_size, (shape[0], setting["context_tokens"])).to(device)
    queries = torch.randint(1, vocab_size, shape).to(device)
    labels = queries.clone()
    labels[:, :-TARGET_TOKENS] = IGNORE
    inputs = {"context_input_ids": contexts, "query_input_ids": queries}
    finish = torch.cuda.synchronize if device != "cpu" else lambda: None
    model = build(official, transformers, setting, "second").to(device)
    repeats = setting["repeats"]
    if arguments.what == "step":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def train() -> None:
            model(inputs, labels=labels)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        seconds = median_seconds(train, repeats, finish)
        return {"seconds": seconds, "peak_mib": peak_mib(torch, device)}
    cheapest = build(official, transformers, setting, "none").to(device).eval()
    with torch.no_grad():
        seconds = median_seconds(lambda: cheapest(inputs), repeats, finish)
        peak = peak_mib(torch, device)
        second_order = median_seconds(lambda: model.eval()(inputs), repeats, finish)
    return {"seconds": seconds, "second_order_seconds": second_order, "peak_mib": peak}


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="checkout of the official code")
    parser.add_argument("what", choices=["check", "step", "inference"])
    parser.add_argument("setting", nargs="?", help="a Setting as JSON")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.directory)
    try:
        import torch
        import transformers
    except ImportError as error:
        sys.exit(f"{sys.executable} cannot import {error.name}: install torch and transformers.")
    if importlib.util.find_spec("triton") is None:  # its fused kernels need it; eager does not
        sys.modules["attn_double_bwd"] = types.ModuleType("attn_double_bwd")
    import grad_memgpt as official

    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    result: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if arguments.what != "check":
        result |= run(torch, official, transformers, arguments)
    print(json.dumps(result | {"threads": threads}), flush=True)


if __name__ == "__main__":
    main()
