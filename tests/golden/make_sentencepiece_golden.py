"""Writes tests/golden/sentencepiece/: tiny tokenizer.model files, texts and their ids.

  python tests/golden/make_sentencepiece_golden.py TEXT_FILE

Needs the package sentencepiece (0.2.3 made what is here). TEXT_FILE is any English text; here it
was the first 200,000 characters of WikiText-2's test file.
"""

import io
import json
import pathlib
import sys

import sentencepiece

OUT = pathlib.Path(__file__).parent / "sentencepiece"
USUAL = dict(vocab_size=400, character_coverage=0.99, num_threads=1)
PLAIN = dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
KINDS = {
    "llama": dict(PLAIN, model_type="bpe", byte_fallback=True, split_digits=True),
    "gemma": dict(
        PLAIN,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        user_defined_symbols=["<start_of_turn>", "\n\n"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
    ),
    "unigram": dict(model_type="unigram", normalization_rule_name="identity"),
    "unigram_bytes": dict(PLAIN, model_type="unigram", byte_fallback=True),
}
TEXTS = (
    "",
    "a",
    " ",
    "  ",
    "The game began development in 2010.",
    " leading and trailing ",
    "two  blanks,   three",
    "line\nbreak\n\nand two\r\n",
    "tab\tand\x00control\x7f",
    "caf\u00e9 cafe\u0301 \u00df \ufb01 \u2460",
    "\u4e2d\u6587\u3002 \u0420\u0443\u0441 \u05e2\u05d1",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2581 \u2581a",
    "\u00a0no-break\u3000wide\u2003em",
    "<start_of_turn>user\n\nHi<start_of_turn>",
    "don't U.S. 3.14 1,000,000 @-@ \u2014 \u201cquoted\u201d",
    "aaaaaaaaaaaaaaaaaaaaaaaaa",
    "UPPER lower MiXeD_snake-case",
    "\ufeffmark \uffff \ud7ff",
)


def main() -> None:
    """Trains the models and encodes the texts."""
    text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")[:200_000]
    OUT.mkdir(exist_ok=True)
    golden = {"texts": TEXTS, "ids": {}}
    for name, options in KINDS.items():
        file = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.split("\n")), model_writer=file, **{**USUAL, **options}
        )
        (OUT / f"{name}.model").write_bytes(file.getvalue())
        model = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
        golden["ids"][name] = [model.encode(text) for text in TEXTS]
    content = json.dumps(golden, separators=(",", ":"))
    (OUT / "ids.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
