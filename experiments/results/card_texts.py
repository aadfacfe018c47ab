"""What model cards say that is no number of a run: how to use a model, data of others, citation."""

from typing import NamedTuple

from gradmem_jax.data.tasks import GENERATED

CODE = "gradmem_jax"
CITATION = """```bibtex
@inproceedings{gradmem,
  title = {GradMem: Learning to Write Context into Memory with Test-Time Gradient Descent},
  author = {Kuratov and Kairov and Bulatov and Rodkin and Burtsev},
  booktitle = {ICML},
  year = {2026},
  note = {arXiv:2603.13875},
  url = {https://arxiv.org/abs/2603.13875}
}
```"""


class DataOfOthers(NamedTuple):
    """Data of others that a task is made of.

    Attributes:
        hub: their name on the hub.
        text: what they are, and their licence.
    """

    hub: str
    text: str


DATA = {
    "babi": DataOfOthers(
        "facebook/babi_qa",
        "Stories of [bAbI](https://arxiv.org/abs/1502.05698) by Facebook, CC BY 3.0.",
    ),
    "squad": DataOfOthers(
        "rajpurkar/squad",
        "Paragraphs and questions of [SQuAD 1.1](https://arxiv.org/abs/1606.05250), from "
        "Wikipedia, CC BY-SA 4.0.",
    ),
    "wikitext": DataOfOthers(
        "Salesforce/wikitext",
        "Texts of [WikiText](https://arxiv.org/abs/1609.07843), from Wikipedia, CC BY-SA 3.0.",
    ),
}


def usage() -> str:
    """How a model is opened, on the command line and in Python."""
    return f"""With a clone of the code and `pip install -e '.[programs,hub]'`. `MODEL` is the name
of this repository, `org/name`, or a folder with its files:

```sh
python -m experiments.write --model=MODEL --context=context.txt --out=memory.safetensors
python -m experiments.ask --memory=memory.safetensors --model=MODEL 'QUESTION'
```

In Python:

```python
import {CODE}
from experiments.answers.open_model import open_model

opened = open_model("MODEL")
context = opened.tokenizer.encode(open("context.txt").read().strip())[None]
question = opened.tokenizer.encode(opened.prompt("QUESTION"))[None]
memory, info = opened.model.write_memory(opened.params, context)
ids = {CODE}.generate(opened.model, opened.params, memory, question, 8, stop_id=opened.end_id)
answer = opened.tokenizer.decode(ids[0])
```"""


def data_text(task: str) -> str:
    """Which data of others a task has, and their licence."""
    if task in GENERATED:
        return "The contexts are generated when they are asked for: no data of others."
    if task in DATA:
        return f"{DATA[task].text} Weights trained on them are bound by what they ask."
    return "What texts it was trained on, and their licence, is not recorded in its files."
