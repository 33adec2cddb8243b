#!/usr/bin/env python3
"""Renders the chat templates of testsuite/fixtures/templates with transformers, as `apply_chat_template` does.

    pip install transformers==5.23.0 jinja2==3.1.6
    python templates.py FOLDER

Reads FOLDER/*.jinja and FOLDER/conversations.json, writes FOLDER/expected/NAME.json: for each conversation the text, or
{"error": the message}. The clock is fixed.
"""

import argparse
import datetime
import json
import pathlib

from transformers.utils import chat_template_utils as chat

SPECIAL = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


class Clock(datetime.datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz=None):
        return datetime.datetime(2025, 3, 7, 9, 5, 2)


def rendered(template, case):
    """What `apply_chat_template(tokenize=False)` gives."""
    variables = dict(case)
    messages = [{k: v for k, v in m.items() if v is not None} for m in variables.pop("messages")]
    try:
        texts, _ = chat.render_jinja_template(conversations=[messages], chat_template=template,
                                              **{**SPECIAL, **variables})
        return texts[0]
    except Exception as error:
        return dict(error=str(error), kind=type(error).__name__)


def main():
    """Renders all templates of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    chat.datetime = Clock
    cases = json.loads((folder / "conversations.json").read_text())
    (folder / "expected").mkdir(exist_ok=True)
    for path in sorted(folder.glob("*.jinja")):
        # Line ends are part of a template: no translation.
        template = path.read_bytes().decode()
        out = {name: rendered(template, case) for name, case in cases.items()}
        failed = sum(isinstance(o, dict) for o in out.values())
        text = json.dumps(out, indent=1, ensure_ascii=False) + "\n"
        (folder / "expected" / f"{path.stem}.json").write_text(text)
        print(f"{path.stem}: {len(out) - failed} texts, {failed} errors")


if __name__ == "__main__":
    main()
