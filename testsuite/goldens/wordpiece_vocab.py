"""Two small WordPiece vocabularies, as llama.cpp's converter spells them, and texts with their ids:
testsuite/fixtures/text/wordpiece.json. "lower" is of text in lower case, "cased" of text as it is.

    pip install transformers==5.23.0
    python wordpiece_vocab.py ../fixtures/text/wordpiece.json ../../docs/*.md
"""

import json
import pathlib
import sys
import tempfile

from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizer

TEXTS = [
    "Hello world", " Hello  world ", "a", "", "   ", "The kernel reads the weight.", "naïve café 你好 🦀!", "\t\n\r",
    "x" * 101, "1234567890 12.5e-3", "fn main() {\n    println!(\"hi\");\n}", "The the THE ThE", "\u2581 \u2581a",
    "é e\u0301", "ＦＵＬＬ width ﬁ", "[CLS] is a token, [sep] is none", "[MASK]ed [UNK]", "##ing", "\u0000\u0001\u007f\u00ad",
    "tokens, which are words; some are rare: antidisestablishmentarianism", "co-operate can't Ünïcödé",
]


def phantom(token):
    """`BertModel.set_vocab` of llama.cpp's converter."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token


def main(path, corpus):
    out = {}
    for kind, lower in [("lower", True), ("cased", False)]:
        trained = BertWordPieceTokenizer(lowercase=lower)
        trained.train(corpus, vocab_size=700, min_frequency=2, show_progress=False)
        with tempfile.TemporaryDirectory() as folder:
            trained.save_model(folder)
            place = pathlib.Path(folder) / "vocab.txt"
            tokens = place.read_text(encoding="utf-8").splitlines()
            tokenizer = BertTokenizer(str(place), do_lower_case=lower)
        assert tokenizer.convert_tokens_to_ids(tokens) == list(range(len(tokens)))
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        cases = [dict(text=t, ids=tokenizer(t)["input_ids"]) for t in TEXTS]
        out[kind] = dict(tokens=[phantom(t) for t in tokens], types=[3 if t in special else 1 for t in tokens],
                         special={s: tokens.index(s) for s in special}, cases=cases)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(out, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


main(sys.argv[1], sys.argv[2:])
