#!/usr/bin/env python3
"""When one SM runs the kernels of a decode step: their starts, ends of waits, first and second barriers, and ends.

    weft compile SHAPE --target sm_90 --max-batch 1 --max-seq 1280 -o b.weft
    python3 testsuite/peers/timeline.py b.weft [--sm 7] [--step 300] [--context 1024]

It measures a copy of the bundle whose kernels keep clock64() of their blocks on that SM and print the last of them at
that step; `weft bench` takes 256 single steps first, so later ones are of a generation. What it keeps and prints costs
about 1% of a step. Microseconds are of the SM's clock, 1980 MHz unless --mhz says otherwise.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ENTRY = 'extern "C" __global__'
WAIT = "grid_dependency_wait();\n"
BARRIER = "__syncthreads();\n"
KEPT = 56

HEAD = """__device__ unsigned stamp_count, stamp_launches, stamp_done;
__device__ long long stamps[64 * 5];

"""
TAIL = """    if (threadIdx.x == 0 && blockIdx.x + blockIdx.y + blockIdx.z == 0) atomicAdd(&stamp_launches, 1u);
    if (threadIdx.x == 0 && stamp_sm == %(sm)du) {
        stamp[4] = clock64();
        const unsigned n = atomicAdd(&stamp_count, 1u);
        for (int i = 0; i < 5; ++i) stamps[n %% 64 * 5 + i] = stamp[i];
        if (*(volatile unsigned*)&stamp_launches >= %(launches)du && atomicAdd(&stamp_done, 1u) == 0) {
            for (unsigned i = 0; i < %(kept)du; ++i) {
                const long long* s = &stamps[(n - %(kept)du + 1 + i) %% 64 * 5];
                printf("STAMP %(name)s %%lld %%lld %%lld %%lld %%lld\\n", s[0], s[1], s[2], s[3], s[4]);
            }
        }
    }
}
"""


def stamped(text, name, sm, launches):
    """The source of a kernel that keeps its clocks; None where it does not wait."""
    head, body = text.split(ENTRY, 1)
    if WAIT not in body:
        return None
    start = "    long long stamp[5] = {clock64()};\n    unsigned stamp_sm;\n"
    start += '    asm volatile("mov.u32 %0, %%smid;" : "=r"(stamp_sm));\n'
    body = body.replace(") {\n", ") {\n" + start, 1)
    before, behind = body.split(WAIT, 1)
    first, *rest = behind.split(BARRIER, 2)
    for i, part in enumerate(rest):
        keep = f"    if (stamp[{i + 2}] == 0) stamp[{i + 2}] = clock64();\n"
        first += BARRIER + keep + part
    body = before + WAIT + "    stamp[1] = clock64();\n" + first
    tail = TAIL % {"sm": sm, "launches": launches, "kept": KEPT, "name": name}
    return head + HEAD + ENTRY + body[: body.rstrip().rindex("}")] + tail


def edit(bundle, sm, step):
    """Edits the kernels of a layer's single decode step; how many."""
    listed = subprocess.run(["weft", "inspect", bundle, "--entry", "decode_1"], capture_output=True, text=True, check=True)
    edited = 0
    for line in listed.stdout.splitlines():
        found = re.match(r"(\w+)\s+\S+\s+(\d+)\s+\d+×", line)
        if not found or int(found[2]) < 2:
            continue
        file = Path(bundle) / "kernels" / f"{found[1]}.cu"
        text = stamped(file.read_text(), found[1], sm, int(found[2]) * step)
        if text is not None:
            file.write_text(text)
            edited += 1
    return edited


def table(output, mhz):
    """Rows of the time in which all kernels are there, in order of their starts."""
    rows = [line.split()[1:] for line in output.splitlines() if line.startswith("STAMP ")]
    rows = sorted(([int(v) for v in row[1:]], row[0]) for row in rows)
    kernels = {name for _, name in rows}
    if not kernels:
        return []
    of = lambda name: [clocks for clocks, other in rows if other == name]
    first, last = max(of(n)[0][0] for n in kernels), min(of(n)[-1][4] for n in kernels)
    rows = [row for row in rows if first <= row[0][0] <= last]
    origin = rows[0][0][0] if rows else 0
    shown = lambda clock: f"{(clock - origin) / mhz:9.2f}" if clock else "        –"
    return [" ".join(map(shown, clocks)) + "  " + name for clocks, name in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--sm", type=int, default=7)
    parser.add_argument("--step", type=int, default=300)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--mhz", type=float, default=1980.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "timeline.weft"
        shutil.copytree(args.bundle, copy)
        if edit(str(copy), args.sm, args.step) == 0:
            sys.exit(f"{args.bundle}: no kernel of decode_1 that waits and runs in each layer")
        command = ["weft", "bench", str(copy), "--context", str(args.context), "--runs", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr or done.stdout)
    rows = table(done.stdout, args.mhz)
    if not rows:
        sys.exit(f"no block of the step ran on SM {args.sm}: try another")
    print("    start      wait   barrier    second       end  kernel, µs")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
