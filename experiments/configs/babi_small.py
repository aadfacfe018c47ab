"""bAbI with small models from scratch, for CPU: `babi_small.py:qa2_gradmem_k2`.

`qa1` to `qa5` in front, then a name of gradmem_jax/methods.py and the number of WRITE steps.
"""

from ml_collections import ConfigDict

from experiments.configs import default, recipe
from experiments.configs.arguments import Arguments
from gradmem_jax.methods import METHODS

ARGUMENTS = Arguments("qa2_gradmem_k2", cells=("qa#",), methods=tuple(METHODS), letters="k")
# Lengths of contexts, in tokens, that are learned one after the other; 0 is any. In QA1 by the full
# context only.
CONTEXT_LENGTHS = {
    1: (16, 40, 0),
    2: (28, 40, 64, 100, 0),
    3: (64, 100, 160, 0),
    5: (40, 64, 128, 0),
}
# Copies of the stories, with other names, verbs and order, of tasks whose questions combine facts.
# They have too few to learn from: the full context learns to predict the story too. READ, from
# memory, learns them with more layers, few vectors and a small weight of the WRITE loss
# (docs/notebook.md).
VARIED_COPIES = {2: 16, 3: 32, 5: 8}
# Questions of a story after each WRITE.
QUERIES_PER_CONTEXT = {1: 4, 2: 8, 3: 8, 5: 6}
# Tasks that take several steps from fact to fact: questions about single steps are asked too, and
# the full context learns from several questions as well, with Muon as all methods there. QA5's
# GradMem has Muon too.
QUERY_TASKS = {2: (1, 2), 3: (1, 2, 3)}


def get_config(arguments: str = "qa1_gradmem_k2") -> ConfigDict:
    """Returns the configuration of a cell."""
    _, qa, method, numbers, _ = ARGUMENTS.parse(arguments)
    config = default.get_config(method, "babi")
    config.data.qa = qa
    config.data.varied_copies = VARIED_COPIES.get(config.data.qa, 0)
    config.num_steps = 2500
    config.batch_size = 32
    config.evaluate_every = 250
    config.num_eval_samples = 1000
    config.stop_at_exact_match = 0.999
    config.lm.width = 64
    config.lm.rope_base = 10_000.0
    config.model.num_write_steps = numbers.get("k", 1)
    full_context, gradmem = config.method == "full_context", config.method == "gradmem"
    combined = config.data.qa in VARIED_COPIES
    if full_context or combined:
        config.curriculum.max_context_tokens = CONTEXT_LENGTHS.get(config.data.qa, ())
        config.curriculum.exact_match = 0.95 if full_context else 0.93
    if combined:
        config.lm.num_layers = 6
        default.set_known(config.model, num_memory_tokens=32)
    if full_context:
        config.model.inner_loss_weight = float(combined)
    if gradmem:
        config.model.inner_loss_weight = 0.3 if combined else 1.0
    if not full_context or config.data.qa in QUERY_TASKS:
        config.data.queries_per_context = QUERIES_PER_CONTEXT.get(config.data.qa, 1)
    recipe.apply(config)
    if config.data.qa in QUERY_TASKS:
        config.data.query_tasks = QUERY_TASKS[config.data.qa]
        config.data.ask_holders = True
    if config.data.qa in QUERY_TASKS or (gradmem and combined):
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 1e-3
    return config
