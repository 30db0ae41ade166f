"""What the processor at hand can do at most: the ceilings that speeds are shares of.

    python -m fastdigit.bench.ceilings [--threads N]

The micro-kernel alone, on operands that stay in the first-level cache, reaches what the fused multiply-add
units give; a copy of arrays that fit in no cache, each thread a part of it, reaches what the memory gives.
How long threads take to meet says how far apart their cores are: a virtual machine's may move, and then
whatever meets often runs at half the speed, by the same clock.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastdigit.kernels.common.memory import ints
from fastdigit.kernels.common.team import Kernel, thread_count, wait_for_all
from fastdigit.kernels.matmul import cpu

from . import turns

COMMAND = ("-m", "fastdigit.bench.ceilings", "--child")
DEPTH, TILES = 128, 4000  # steps of a tile, and tiles of a measurement: some 10 ms
MEETINGS = 2000
REPEAT = 15


def _limit(thread, threads, barrier, arguments):
    """Tiles of rows × columns, the operands at (address + thread · size), the result likewise."""
    a, b, c, size, tiles, depth = ints(arguments, 6)
    a, b, c = a + thread * size, b + thread * size, c + thread * size
    rows, columns, lowest = cpu.ROWS, cpu.COLUMNS, np.float32(-np.inf)
    for _ in range(tiles):
        cpu._multiply(a, 1, rows, b, columns, c, columns, c, columns, 0, depth, 0, rows, columns, lowest)


_limit_kernel = Kernel(_limit)


def multiply_add(threads=None):
    """GFLOP/s in float32, of so many threads: the median of REPEAT measurements."""
    threads = thread_count(threads)
    operands = np.full((3, threads, DEPTH * 2 * cpu.COLUMNS), 1e-3, np.float32)
    a, b, c = (operand.ctypes.data for operand in operands)
    words = a, b, c, operands[0, 0].nbytes, TILES, DEPTH
    seconds = []
    for _ in range(REPEAT):
        operands[2] = 0
        begun = time.perf_counter()
        _limit_kernel(words, threads)
        seconds.append(time.perf_counter() - begun)
    return 2 * threads * TILES * DEPTH * cpu.ROWS * cpu.COLUMNS / float(np.median(seconds)) / 1e9


def _meet(thread, threads, barrier, arguments):
    for _ in range(ints(arguments, 1)[0]):
        wait_for_all(barrier, threads)


_meet_kernel = Kernel(_meet)


def meeting(threads=None):
    """Nanoseconds of a barrier of so many threads: the median of REPEAT measurements. 0 for one."""
    threads, seconds = thread_count(threads), []
    if threads == 1:
        return 0.0
    for _ in range(REPEAT):
        begun = time.perf_counter()
        _meet_kernel([MEETINGS], threads)
        seconds.append(time.perf_counter() - begun)
    return 1e9 * float(np.median(seconds)) / MEETINGS


def copy(threads=None):
    """GB/s read plus written, by so many threads, between arrays of 256 MB."""
    threads = thread_count(threads)
    source, target = np.ones(2**26, np.float32), np.ones(2**26, np.float32)
    parts = np.array_split(target, threads), np.array_split(source, threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEAT // 3 + 1):
            begun = time.perf_counter()
            list(pool.map(np.copyto, *parts))
            seconds.append(time.perf_counter() - begun)
    return 2 * source.nbytes / float(np.median(seconds[1:])) / 1e9


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    threads = thread_count(options.threads)
    if options.child:
        turns.answer_all(lambda question: {"gflops": multiply_add(threads), "meeting": meeting(threads)})
        return
    print(
        f"{multiply_add(threads):.0f} GFLOP/s, {copy(threads):.0f} GB/s copied, by {threads} threads, "
        f"which meet in {meeting(threads):.0f} ns"
    )


if __name__ == "__main__":
    main()
