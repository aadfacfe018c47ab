"""Steps of the paper and of models that people train, by name, for `experiments.plan --work`.

No files are needed: the shapes of known language models are written down here.
"""

import dataclasses
import fnmatch
from typing import Any

from experiments.configs import kv_paper
from experiments.planning.work import Work, batch_shapes, works_of_run
from experiments.run.build import build
from gradmem_jax.checks import require
from gradmem_jax.lm.gpt2 import GPT2Config
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.memory.gradmem import GradMem, GradMemConfig
from gradmem_jax.parallel.sharding import MeshConfig

GPT2 = GPT2Config(
    vocab_size=50257,
    width=768,
    num_layers=12,
    num_heads=12,
    max_positions=1152,
    scan_layers=True,
)
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    width=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    mlp_width=1536,
    max_positions=8704,
    tied_head=True,
    scan_layers=True,
)
LLAMA32_1B = LlamaConfig(
    vocab_size=128256,
    width=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_width=64,
    mlp_width=8192,
    max_positions=8704,
    tied_head=True,
    dtype="bfloat16",
    scan_layers=True,
)
LLAMA32_3B = dataclasses.replace(
    LLAMA32_1B, width=3072, num_layers=28, num_heads=24, head_width=128
)
_TEXT_TOKENS = {"qa": (288, 24), "squad": (64, 48), "lm": (128, 144)}  # of a context, of a query


def catalogue(num_devices: int, batch_size: int | None = None) -> dict[str, Work]:
    """Returns the steps by name, for so many devices.

    Args:
        num_devices: of the machine; large models are split over all of them.
        batch_size: B of all devices, in place of each step's own.
    """
    works = {}
    for pairs in kv_paper.NUM_PAIRS:
        for steps in kv_paper.NUM_WRITE_STEPS["gradmem"]:
            plan = build(kv_paper.get_config(f"n{pairs}_k{steps}"))
            last = list(works_of_run(plan, batch_size))[-1]
            name = f"kv_n{pairs}_k{steps}"
            works[name] = dataclasses.replace(last, name=name)
    for task, (context, query) in _TEXT_TOKENS.items():
        for steps in (1, 2, 5):
            name = f"text_{task}_k{steps}"
            works[name] = _text(name, context, query, steps, batch_size or 64)
    works["gpt2_1024_k1"] = _step(
        "gpt2_1024_k1", GPT2, 1024, 24, batch_size or 16, num_write_steps=1
    )
    for length in (2048, 4096, 8192):
        name = f"smollm2_135m_{length}_k2"
        works[name] = _step(
            name, SMOLLM2_135M, length, 24, batch_size or num_devices, write_head=False
        )
    split = MeshConfig(data=1, fsdp=-1)
    for name, lm in {"llama_1b_k2": LLAMA32_1B, "llama_3b_k2": LLAMA32_3B}.items():
        work = _step(name, lm, 1024, 24, batch_size or num_devices, write_head=False)
        works[name] = dataclasses.replace(work, mesh=split)
    works["llama_1b_adapters_k2"] = dataclasses.replace(
        _step(
            "llama_1b_adapters_k2",
            LLAMA32_1B,
            1024,
            24,
            batch_size or 8 * num_devices,
            write_head=False,
            write_lora_rank=8,
        ),
        frozen=("^lm/",),
    )
    return works


def find_works(patterns: str, num_devices: int, batch_size: int | None = None) -> list[Work]:
    """Returns the steps whose names fit one of some patterns, such as `kv_*,llama_*`.

    Raises:
        ValueError: a pattern fits none.
    """
    works = catalogue(num_devices, batch_size)
    found: dict[str, Work] = {}
    for pattern in patterns.split(","):
        fitting = [name for name in works if fnmatch.fnmatchcase(name, pattern)]
        require(bool(fitting), f"--work={pattern} fits none of {', '.join(works)}.")
        found |= {name: works[name] for name in fitting}
    return list(found.values())


def _text(name: str, context: int, query: int, steps: int, batch_size: int) -> Work:
    """A cell of the paper's table 2 with GPT-2, as experiments/configs/text_paper.py has it."""
    lm = dataclasses.replace(GPT2, dtype="bfloat16")
    tokens = 8 if "qa" in name else 32
    return _step(
        name,
        lm,
        context,
        query,
        batch_size,
        num_write_steps=steps,
        num_memory_tokens=tokens,
        memory_projection="proj",
    )


def _step(
    name: str,
    lm: GPT2Config | LlamaConfig,
    context: int,
    query: int,
    batch_size: int,
    num_write_steps: int = 2,
    **fields: Any,
) -> Work:
    config = GradMemConfig(lm=lm, num_write_steps=num_write_steps, **fields)
    return Work(name, GradMem(config), batch_shapes(batch_size, context, query))
