#!/usr/bin/env python3
"""The speeds that Weft sets itself on an H200, and whether this machine holds them: the table of docs/performance.md.

  goals.py [SHAPE ...] [--weft weft] [--runs 5] [--keep DIR] [--peer] [--modes max-autotune]

A line for each row of GOALS, or of those of the shapes that are named (folders of `shapes`): `weft synth` writes random
weights (to a temporary folder; --keep DIR leaves them, and takes what is there), `weft bench` measures a token, the chain
and the first token of a prompt. --peer runs the PyTorch decoder in the same session. Exit codes: 0 all goals are held, 1
one is missed or a command failed, 2 for bad usage.
"""
import argparse
import os
import sys
import tempfile

import shapes
import side_by_side

HERE = os.path.dirname(os.path.abspath(__file__))

# Shape, tokens in the cache, tokens made; at most so many milliseconds a token, and times the chain.
GOALS = [
    ('smollm2-135m', 1024, 256, 0.25, 1.5),
    ('llama-3.2-1b', 1024, 256, 0.68, 1.15),
    ('qwen3-4b', 1024, 256, 2.15, 1.10),
    ('llama-3.1-8b', 1024, 256, 3.65, 1.08),
    ('llama-3.1-8b', 32768, 64, 4.9, 1.12),
]
# First token of a prompt of 16 tokens, in decode steps.
FIRST = 3.0


def arguments(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('shapes', nargs='*', metavar='SHAPE')
    p.add_argument('--weft', default='weft', help='the binary')
    p.add_argument('--runs', type=int, default=5)
    p.add_argument('--keep', metavar='DIR', help='where the random weights are left, a folder a shape')
    p.add_argument('--peer', action='store_true', help='the PyTorch decoder, too')
    p.add_argument('--modes', default='max-autotune', help='of torch.compile, by commas')
    a = p.parse_args(argv)
    known = {name for name, *_ in GOALS}
    for name in a.shapes:
        if name not in known:
            p.error(f'{name}: not among {", ".join(sorted(known))}')
    return a


def bound(figure, most):
    """A figure beside its bound."""
    return f'{most:g} held' if figure <= most else f'**{most:g} missed by {figure / most - 1:.1%}**'


def row(goal, report, peers):
    """A line of the table, and whether its goals are held."""
    name, context, _, most, times = goal
    token, chain = (report[part]['seconds']['median'] * 1e3 for part in ('token', 'chain'))
    first = report['prompt']['of_step']
    figures = [(token, most), (token / chain, times)] + ([(first, FIRST)] if context == 1024 else [])
    cells = [name, str(context), f'{token:.4f}', f'{chain:.4f}', f'{token / chain:.3f}',
             ', '.join(bound(*f) for f in figures[:2]), f'{first:.2f}',
             ', '.join(f'{p["ms"]:.3f} ({p["mode"]})' for p in peers)]
    return '| ' + ' | '.join(cells) + ' |', all(figure <= bound for figure, bound in figures)


def measured(a, goal, folder):
    name, context, tokens, *_ = goal
    config, model = os.path.join(HERE, 'shapes', name), os.path.join(a.keep or folder, name)
    if not side_by_side.has_weights(model):
        side_by_side.run('weft synth', [a.weft, 'synth', shapes.config_path(config), '-o', model, '--seed', '1', '--force'])
    ask = argparse.Namespace(weft=a.weft, batch=1, context=context, tokens=tokens, runs=a.runs, config=config, modes=a.modes)
    return side_by_side.weft(ask, model), side_by_side.peer(ask) if a.peer else []


def main():
    a = arguments()
    held = True
    print('| shape | context | ms a token | chain, ms | × chain | goals | first token of 16, × step | PyTorch, ms |')
    print('|---|---|---|---|---|---|---|---|', flush=True)
    with tempfile.TemporaryDirectory(prefix='weft-goals-') as folder:
        for goal in (g for g in GOALS if not a.shapes or g[0] in a.shapes):
            try:
                line, holds = row(goal, *measured(a, goal, folder))
            except RuntimeError as e:
                line, holds = f'| {goal[0]} | {goal[1]} | error: {e} |', False
            print(line, flush=True)
            held = held and holds
    return 0 if held else 1


if __name__ == '__main__':
    sys.exit(main())
