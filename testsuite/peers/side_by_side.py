"""Weft and the PyTorch peer on the same GPU, in the same session: milliseconds a token of a decode step.

  side_by_side.py CONFIG [--weft weft] [--batch 1] [--context 1024] [--tokens 256] [--runs 5] [--modes max-autotune]

CONFIG is a config.json, or a folder with one. A folder that has weights is measured with them; for anything else
`weft synth` writes random ones to a temporary folder (--keep DIR keeps them). Prints Weft's table, then both, and how
many times as fast Weft is. Exit codes: 0, 1 when one of the two failed, 2 for bad usage.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import shapes

HERE = os.path.dirname(os.path.abspath(__file__))


def arguments(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('config')
    p.add_argument('--weft', default='weft', help='the binary')
    p.add_argument('--batch', type=int, default=1)
    p.add_argument('--context', type=int, default=1024)
    p.add_argument('--tokens', type=int, default=256)
    p.add_argument('--runs', type=int, default=5)
    p.add_argument('--modes', default='max-autotune', help='of torch.compile, by commas')
    p.add_argument('--seed', type=int, default=0, help='of the random weights')
    p.add_argument('--keep', metavar='DIR', help='write the random weights here, and leave them')
    p.add_argument('--no-peer', action='store_true', help='Weft alone')
    a = p.parse_args(argv)
    try:
        a.name, _ = shapes.shape(a.config)
    except ValueError as e:
        p.error(str(e))
    if not os.path.exists(shapes.config_path(a.config)):
        p.error(f'{a.config}: give a config.json, or a folder with one')
    return a


def run(what, command):
    """Runs a command, its messages to stderr; gives what it printed."""
    print(f'$ {" ".join(command)}', file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    except OSError as e:
        raise RuntimeError(f'{what}: {command[0]}: {e.strerror}') from None
    if done.returncode != 0:
        raise RuntimeError(f'{what} ended with {done.returncode}: {" ".join(command)}')
    return done.stdout


def has_weights(path):
    return os.path.isdir(path) and any(n.endswith('.safetensors') for n in os.listdir(path))


def weft(a, model):
    command = [a.weft, 'bench', model, '--json', '--batch', str(a.batch), '--context', str(a.context)]
    return json.loads(run('weft bench', command + ['--tokens', str(a.tokens), '--runs', str(a.runs)]))


def peer(a):
    """One figure for each mode of torch.compile."""
    command = [sys.executable, os.path.join(HERE, 'torch_decoder.py'), a.config, '--json', '--modes', a.modes]
    text = run('the PyTorch peer', command + ['--decode', str(a.batch), '--context', str(a.context)])
    found = [json.loads(line) for line in text.splitlines() if line.startswith('{')]
    if not found:
        raise RuntimeError('the PyTorch peer printed no figure')
    return found


def kernels(report):
    """Weft's table."""
    lines = [('kernel', 'launches', 'us alone', 'TB/s', 'of ceiling')]
    for k in report['kernels']:
        lines.append((k['name'], str(k['launches']), f'{k["seconds"]["median"] * 1e6:.2f}', f'{k["rate"] / 1e12:.2f}',
                      f'{k["of_ceiling"]:.0%}'))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    cell = [str.ljust] + [str.rjust] * (len(widths) - 1)
    return '\n'.join('  '.join(f(c, w) for f, c, w in zip(cell, line, widths)) for line in lines)


def compared(a, report, peers):
    """Both, a line each; the peer's launches are of one step with the same inputs, so Weft's step is beside its token."""
    ms = lambda s: f'{s["median"] * 1e3:.4f} ms ({s["lowest"] * 1e3:.4f}-{s["highest"] * 1e3:.4f})'
    token, step, chain = (report[part]['seconds'] for part in ('token', 'step', 'chain'))
    lines = [f'{a.name}, batch {a.batch}, context {a.context}, {report["device"]}, {report["dtype"]}',
             f'  weft, a token        {ms(token)}, {report["token"]["of_chain"]:.2f} x chain',
             f'  weft, a step alone   {ms(step)}, {report["step"]["of_chain"]:.2f} x chain',
             f'  chain                {ms(chain)}']
    for p in peers:
        faster = p['ms'] / 1e3 / token['median']
        lines.append(f'  torch {p["torch"]} {p["mode"]}: {p["ms"]:.4f} ms a step; weft is {faster:.2f} x as fast a token')
    return '\n'.join(lines)


def main():
    a = arguments()
    try:
        with tempfile.TemporaryDirectory(prefix='weft-side-by-side-') as folder:
            model = a.config
            if not has_weights(a.config):
                model = a.keep or os.path.join(folder, 'model')
                run('weft synth', [a.weft, 'synth', a.config, '-o', model, '--seed', str(a.seed), '--force'])
            report = weft(a, model)
        print(kernels(report))
        print(compared(a, report, [] if a.no_peer else peer(a)))
    except RuntimeError as e:
        print(f'error: {e}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
