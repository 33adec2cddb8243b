"""Two small SentencePiece vocabularies (BPE with byte fallback), as GGUF metadata holds them, and texts with their ids:
testsuite/fixtures/text/sentencepiece.json. "llama" begins each piece of text between special tokens with a space, as
llama.cpp does; "gemma" adds none.

    pip install sentencepiece==0.2.3
    python sentencepiece_vocab.py ../fixtures/text/sentencepiece.json ../../docs/*.md
"""

import io
import json
import re
import sys

import sentencepiece as spm

CONTROL = ["<|im_start|>", "<|im_end|>"]
USER = ["<|user|>", "\n\n"]
TEXTS = [
    "Hello world", " Hello  world ", "a", " ", "   ", "The kernel reads the weight.", "naïve café 你好 🦀!", "\t\n\r",
    "x" * 40, "1234567890 12.5e-3", "fn main() {\n    println!(\"hi\");\n}", "zzzzqqqq", "The the THE ThE", "\u2581 \u2581a",
    "emoji 👩‍👩‍👧 family", "é e\u0301", "ＦＵＬＬ width ﬁ", "line\nline\n", "aaaaaaaaaaaaaa", "ababababab", "\u0000\u0001\u007f",
    "tokens, which are words; some are rare: antidisestablishmentarianism",
]
SPECIAL = ["<|im_start|>user\nHi there<|im_end|>", "one<|user|>two", "<|user|><|user|> x", "para\n\npara"]


def main(path, corpus):
    lines = [line for f in corpus for line in open(f, encoding="utf-8").read().split("\n") if line]
    out = {}
    for kind, prefix in [("llama", True), ("gemma", False)]:
        model = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=900, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
            split_digits=True, control_symbols=CONTROL, user_defined_symbols=USER, minloglevel=2, num_threads=1,
            allow_whitespace_only_pieces=True,
        )  # fmt: skip
        sp = spm.SentencePieceProcessor(model_proto=model.getvalue())
        n = sp.vocab_size()
        kinds = [
            2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 5 if sp.is_unused(i) else 6 if sp.is_byte(i)
            else 4 if sp.id_to_piece(i) in USER else 1
            for i in range(n)
        ]  # fmt: skip
        cases = []
        for text in TEXTS + SPECIAL:
            ids = []
            for part in re.split("(" + "|".join(re.escape(s) for s in CONTROL + USER) + ")", text):
                if part in CONTROL + USER:
                    ids.append(sp.piece_to_id(part))
                elif part:
                    ids += sp.encode(part)
            cases.append({"text": text, "ids": ids})
        decoded = [{"ids": c["ids"], "text": sp.decode(c["ids"])} for c in cases[: len(TEXTS)]]
        out[kind] = {
            "tokens": [sp.id_to_piece(i) for i in range(n)], "scores": [sp.get_score(i) for i in range(n)], "types": kinds,
            "bos": sp.bos_id(), "eos": sp.eos_id(), "cases": cases, "decoded": decoded,
        }  # fmt: skip
    with open(path, "w", encoding="utf-8") as f:
        json.dump(out, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


main(sys.argv[1], sys.argv[2:])
