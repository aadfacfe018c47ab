"""The runs behind bAbI in docs/results.md, step by step; pick with --only=^qa2_, say.

Some were ended by hand, at the step that stands beside them. A sweep takes such a run for one that
is not finished: let --dry_run print the commands and start the next one yourself. The files are
found by GRADMEM_DATA_DIR, which holds babi/.
"""

from typing import Any

from experiments.sweeps.run_list import Run

Fields = dict[str, Any]
# A run on all lengths goes on from the last step of the one before, not from its best one.
GO_ON: Fields = {"init_checkpoint": "latest", "curriculum.max_context_tokens": ()}
ALL_LENGTHS: Fields = {"curriculum.max_context_tokens": ()}
FOUR_LAYERS: Fields = {"lm.num_layers": 4}
ONE_QUESTION: Fields = {"data.queries_per_context": 1}
TWO_OR_THREE: Fields = {"final_num_write_steps": (0, 2, 3)}
ONE_PASS: Fields = {"final_num_write_steps": (0, 1)}


def _run(name: str, cell: str, fields: Fields, after: str = "") -> Run:
    return Run(name, f"experiments/configs/babi_small.py:{cell}", fields, after)


def _qa4() -> list[Run]:
    full = _run("qa4_full", "qa4_full_context", {})
    return [
        full,
        _run("qa4_gradmem", "qa4_gradmem_k2", {}, full.name),
        _run("qa4_rmt", "qa4_rmt_k1", {"num_steps": 3000}, full.name),
    ]


def _qa1() -> list[Run]:
    full = _run("qa1_full", "qa1_full_context", {})
    muon = {
        "data.varied_copies": 16,
        "data.max_context_tokens": 16,
        "optimizer.schedule": "constant",
        "num_steps": 1500,
        "optimizer.name": "muon",
        "optimizer.learning_rate": 1e-3,
    }
    lengths = {"num_steps": 4000, "curriculum.max_context_tokens": (16, 28, 40, 0)}
    alone = lengths | {"curriculum.exact_match": 0.93, "optimizer.weight_decay": 0.1}
    slower = {"optimizer.learning_rate": 1e-3}
    late = ONE_QUESTION | slower | {"optimizer.warmup_steps": 100}
    copies = {"data.varied_copies": 16, "model.inner_loss_weight": 0.3, "num_steps": 1500}
    steps: list[tuple[str, str, Fields]] = [
        ("qa1_gradmem_16", "k2", {"data.max_context_tokens": 16, "num_steps": 1500} | ONE_QUESTION),
        ("qa1_gradmem_28", "k2", {"data.max_context_tokens": 28, "num_steps": 1500} | ONE_QUESTION),
        (  # ended by hand at step 800
            "qa1_gradmem_40",
            "k2",
            {"data.max_context_tokens": 40, "num_steps": 1200} | slower | ONE_QUESTION,
        ),
        ("qa1_gradmem_all", "k2", {"num_steps": 800} | late),
        ("qa1_gradmem_all_2", "k2", {"num_steps": 700} | late),
        ("qa1_gradmem_k4", "k4", {"num_steps": 800} | late),
        ("qa1_gradmem_k4_2", "k4", {"num_steps": 1000} | late),
    ]
    runs = [full]
    for name, k, fields in steps:
        runs.append(_run(name, f"qa1_gradmem_{k}", fields, runs[-1].name))
    in_one = _run("qa1_gradmem_in_one", "qa1_gradmem_k4", alone | ONE_QUESTION, full.name)
    return [
        *runs,
        in_one,
        _run("qa1_gradmem_copies", "qa1_gradmem_k4", copies | late, in_one.name),
        _run("qa1_rmt", "qa1_rmt_k1", lengths | ONE_QUESTION, full.name),
        _run("qa1_full_muon", "qa1_full_context", ALL_LENGTHS | muon),
    ]


def _qa2() -> list[Run]:
    """Two CPU devices trained the first three of GradMem, one the last."""
    full = {"num_steps": 4000, "model.inner_loss_weight": 0.3}
    places = {"num_steps": 6000, "data.ask_holders": False, "data.queries_per_context": 6}
    longer = {
        "num_steps": 1200,
        "model.inner_loss_weight": 0.1,
        "optimizer.warmup_steps": 30,
        "evaluate_every": 600,
    }
    rmt = {
        "model.num_memory_tokens": 32,
        "curriculum.max_context_tokens": (40, 64, 100, 0),
        "curriculum.exact_match": 0.93,
        "num_steps": 1500,
        "optimizer.warmup_steps": 50,
        "final_num_write_steps": (0, 1, 2),
    }
    first = {  # ended by hand at step 1,381
        "curriculum.exact_match": 0.94,
        "num_steps": 4500,
        "model.inner_loss_weight": 0.5,
        "optimizer.warmup_steps": 100,
        "evaluate_every": 2000,
    }
    second = {  # ended by hand at step 555
        "num_steps": 1450,
        "model.inner_loss_weight": 0.5,
        "optimizer.warmup_steps": 20,
        "evaluate_every": 350,
    }
    third = {
        "num_steps": 850,
        "model.inner_loss_weight": 0.1,
        "optimizer.learning_rate": 8e-4,
        "optimizer.warmup_steps": 20,
        "evaluate_every": 400,
        "final_num_write_steps": (0, 3),
    }
    fourth = {  # the model of experiments/models/babi_qa2
        "num_steps": 2200,
        "model.inner_loss_weight": 0.05,
        "optimizer.learning_rate": 8e-4,
        "optimizer.warmup_steps": 20,
        "evaluate_every": 500,
    }
    return [
        _run("qa2_full", "qa2_full_context", FOUR_LAYERS | full),
        _run("qa2_full_places", "qa2_full_context", FOUR_LAYERS | places),
        _run(
            "qa2_full_longer",
            "qa2_full_context",
            FOUR_LAYERS | ALL_LENGTHS | longer | ONE_PASS,
            "qa2_full",
        ),
        _run("qa2_rmt", "qa2_rmt_k1", FOUR_LAYERS | rmt, "qa2_full"),
        # ended by hand at step 3,000
        _run("qa2_full_deep", "qa2_full_context", full | {"evaluate_every": 500}),
        _run("qa2_gradmem", "qa2_gradmem_k2", first, "qa2_full_deep"),
        _run("qa2_gradmem_2", "qa2_gradmem_k3", GO_ON | second, "qa2_gradmem"),
        _run("qa2_gradmem_3", "qa2_gradmem_k3", GO_ON | third, "qa2_gradmem_2"),
        _run(
            "qa2_gradmem_4",
            "qa2_gradmem_k2",
            ALL_LENGTHS | fourth | TWO_OR_THREE,
            "qa2_gradmem_3",
        ),
    ]


def _qa5() -> list[Run]:
    full = {"data.varied_copies": 4, "stop_at_exact_match": 0.985}
    rmt = {
        "model.num_memory_tokens": 64,
        "data.queries_per_context": 4,
        "curriculum.exact_match": 0.92,
        "num_steps": 600,
    }
    first = {"optimizer.warmup_steps": 100, "evaluate_every": 500}  # ended by hand at step 724
    second = {
        "num_steps": 1100,
        "model.inner_loss_weight": 0.1,
        "optimizer.warmup_steps": 20,
        "evaluate_every": 400,
    }
    third = {
        "num_steps": 1800,
        "model.inner_loss_weight": 0.05,
        "optimizer.warmup_steps": 20,
        "evaluate_every": 300,
        "best_metric": "read_loss",
    }
    return [
        _run("qa5_full", "qa5_full_context", FOUR_LAYERS | full),
        _run("qa5_rmt", "qa5_rmt_k1", FOUR_LAYERS | rmt, "qa5_full"),
        _run("qa5_gradmem", "qa5_gradmem_k2", first, "qa2_gradmem_3"),
        _run("qa5_gradmem_2", "qa5_gradmem_k2", GO_ON | second | TWO_OR_THREE, "qa5_gradmem"),
        _run("qa5_gradmem_3", "qa5_gradmem_k2", GO_ON | third | TWO_OR_THREE, "qa5_gradmem_2"),
    ]


def _qa3() -> list[Run]:
    """Trained on the archive's small files: the 10k training file of QA3 was missing."""
    full = {  # ended by hand at step 1,104
        "num_steps": 1500,
        "model.inner_loss_weight": 0.1,
        "optimizer.warmup_steps": 50,
    }
    full_2 = {
        "num_steps": 900,
        "model.inner_loss_weight": 0.1,
        "optimizer.warmup_steps": 30,
        "evaluate_every": 300,
    }
    rmt = {  # ended by hand at step 528
        "model.num_memory_tokens": 32,
        "curriculum.max_context_tokens": (100, 200, 0),
        "curriculum.exact_match": 0.92,
        "num_steps": 600,
        "optimizer.warmup_steps": 50,
    }
    rmt_2 = {
        "model.num_memory_tokens": 32,
        "num_steps": 450,
        "optimizer.warmup_steps": 20,
        "evaluate_every": 150,
        "num_micro_batches": 2,
    }
    small = {"model.inner_loss_weight": 0.05, "optimizer.warmup_steps": 20}
    gradmem = [
        (  # ended by hand at step 596
            "qa3_gradmem",
            {
                "model.inner_loss_weight": 0.1,
                "optimizer.warmup_steps": 50,
                "evaluate_every": 2000,
            },
        ),
        (  # ended by hand at step 65
            "qa3_gradmem_2",
            GO_ON | small | {"num_steps": 1100, "evaluate_every": 250} | TWO_OR_THREE,
        ),
        (  # ended by hand at step 424
            "qa3_gradmem_3",
            GO_ON
            | small
            | {"data.max_context_tokens": 320, "num_steps": 1500, "evaluate_every": 200}
            | TWO_OR_THREE,
        ),
        (
            "qa3_gradmem_4",
            GO_ON
            | small
            | {"data.max_context_tokens": 512, "num_steps": 400, "optimizer.warmup_steps": 10}
            | {"evaluate_every": 100, "final_num_write_steps": (2,)},
        ),
        (
            "qa3_gradmem_5",
            GO_ON
            | small
            | {"data.max_context_tokens": 512, "num_steps": 800, "evaluate_every": 200}
            | {"best_metric": "read_loss", "final_num_write_steps": (2,)},
        ),
    ]
    runs = [
        _run("qa3_full", "qa3_full_context", FOUR_LAYERS | full | ONE_PASS, "qa2_full"),
        _run("qa3_full_2", "qa3_full_context", FOUR_LAYERS | GO_ON | full_2 | ONE_PASS, "qa3_full"),
        _run("qa3_rmt", "qa3_rmt_k1", FOUR_LAYERS | rmt | ONE_PASS, "qa2_rmt"),
        _run("qa3_rmt_2", "qa3_rmt_k1", FOUR_LAYERS | GO_ON | rmt_2 | ONE_PASS, "qa3_rmt"),
    ]
    after = "qa2_gradmem_4"
    for name, fields in gradmem:
        runs.append(_run(name, "qa3_gradmem_k2", fields, after))
        after = name
    return runs


def get_runs() -> list[Run]:
    """Returns the runs, each task's behind those that it starts from."""
    return [*_qa4(), *_qa1(), *_qa2(), *_qa5(), *_qa3()]
