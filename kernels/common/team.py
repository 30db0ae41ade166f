"""A team of threads that run one kernel together, each its own share.

Numba's own parallel loops are not used: their simplest layer aborts the process when two threads of
Python enter it at once, another does not survive a fork, all compile slowly, and none lets the
threads of a loop wait for each other, which whole steps of a training need.

A kernel is a function ``(thread, threads, barrier, arguments)`` of integers, compiled to a C
function. Thread 0 is the caller. The others are Python threads that sleep in compiled code, without
the interpreter's lock: for a while after each piece of work they wait by spinning, so that the next
one starts in less than a microsecond, then they block. When the team is busy, a second caller runs
its kernel alone; as kernels give the same bits for any number of threads, that is only slower. After
a fork the child starts a team of its own.
"""

import atexit
import os
import threading
from functools import cached_property

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compiling import c_function, jit
from .memory import aligned_zeros, atomic_add, atomic_read, atomic_write

ENVIRONMENT_VARIABLE = "FASTDIGIT_THREADS"

# Words (int64) of the memory that the members share. Whole pairs of cache lines for each purpose:
# processors fetch lines in pairs, and a line that two threads write travels between them.
LINE = 16
STARTED, CALLER_DONE = 0, 1  # the last piece of work handed out; whose share the caller has done
BARRIER = LINE  # how many have arrived, and how often all have
MEMBERS = 2 * LINE  # then two lines for each member
WORK, FUNCTION, THREAD, THREADS, ARGUMENTS = range(5)  # the first: written by the caller
DONE, ASLEEP, STOP = LINE, LINE + 1, LINE + 2  # the second: written by the member, but for STOP

PATIENCE = 10_000  # turns that a member waits before it blocks: some 200 µs
YIELD_AFTER = 2_000  # turns that a thread waits at a barrier before it offers its core to others


# --- in compiled code ---------------------------------------------------------------------------

_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def _pause(typing):
    """Tell the processor that this loop only waits."""

    def generate(context, build, signature, arguments):
        triple, nothing, word = build.module.triple, ir.VoidType(), ir.IntType(32)
        if triple.startswith(("x86_64", "i686")):
            build.call(
                build.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(nothing, [])), []
            )
        elif triple.startswith(("aarch64", "arm64")):
            hint = ir.FunctionType(nothing, [word])
            build.call(build.module.declare_intrinsic("llvm.aarch64.hint", (), hint), [word(1)])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _call(typing, function, thread, threads, barrier, arguments):
    """Call the kernel at an address."""

    def generate(context, build, signature, arguments):
        word = ir.IntType(64)
        kernel = ir.FunctionType(ir.VoidType(), [word] * 4).as_pointer()
        build.call(build.inttoptr(arguments[0], kernel), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@jit
def wait_for_all(barrier, threads):
    """Return when all threads of the kernel have called this. What they wrote before is seen after."""
    if threads == 1:
        return
    times = atomic_read(barrier + 8)
    if atomic_add(barrier, 1) == threads - 1:
        atomic_write(barrier, 0)
        atomic_write(barrier + 8, times + 1)
        return
    turns = 0
    while atomic_read(barrier + 8) == times:
        turns += 1
        if turns < YIELD_AFTER:
            _pause()
        else:
            _sched_yield()


@jit
def _alone(function, barrier, arguments):
    _call(function, 0, 1, barrier, arguments)


@jit
def _together(shared, number, function, threads, arguments, all_awake):
    """Hand a piece of work to the members and do the caller's share; True when all are done.

    False, before the caller's share is begun, where a member is asleep. Called again with the same
    number it goes on where it was.
    """
    if atomic_read(shared + 8 * STARTED) != number:
        for thread in range(1, threads):
            member = shared + 8 * (MEMBERS + 2 * LINE * (thread - 1))
            atomic_write(member + 8 * FUNCTION, function)
            atomic_write(member + 8 * THREAD, thread)
            atomic_write(member + 8 * THREADS, threads)
            atomic_write(member + 8 * ARGUMENTS, arguments)
            atomic_write(member + 8 * WORK, number)
        atomic_write(shared + 8 * STARTED, number)
    if not all_awake:
        for thread in range(1, threads):
            if atomic_read(shared + 8 * (MEMBERS + 2 * LINE * (thread - 1) + ASLEEP)) == 1:
                return False
    if atomic_read(shared + 8 * CALLER_DONE) != number:
        _call(function, 0, threads, shared + 8 * BARRIER, arguments)
        atomic_write(shared + 8 * CALLER_DONE, number)
    for thread in range(1, threads):
        turns = 0
        while atomic_read(shared + 8 * (MEMBERS + 2 * LINE * (thread - 1) + DONE)) != number:
            turns += 1
            if turns < YIELD_AFTER:
                _pause()
            else:
                _sched_yield()
    return True


@jit
def _member(shared, index):
    """Do what the caller hands out, until there was nothing for a while."""
    member = shared + 8 * (MEMBERS + 2 * LINE * index)
    atomic_write(member + 8 * ASLEEP, 0)
    turns = 0
    while atomic_read(member + 8 * STOP) == 0:
        number = atomic_read(member + 8 * WORK)
        if number != atomic_read(member + 8 * DONE):
            thread, threads = atomic_read(member + 8 * THREAD), atomic_read(member + 8 * THREADS)
            function, arguments = atomic_read(member + 8 * FUNCTION), atomic_read(member + 8 * ARGUMENTS)
            _call(function, thread, threads, shared + 8 * BARRIER, arguments)
            atomic_write(member + 8 * DONE, number)
            turns = 0
            continue
        turns += 1
        _pause()
        if turns > PATIENCE:
            # First say so, then look once more: work handed out in between is seen by one of the two.
            atomic_write(member + 8 * ASLEEP, 1)
            if atomic_read(member + 8 * WORK) == number and atomic_read(member + 8 * STOP) == 0:
                return
            atomic_write(member + 8 * ASLEEP, 0)
            turns = 0


# --- in Python ----------------------------------------------------------------------------------


class _Team:
    """The caller and its members; one piece of work at a time."""

    MAX_THREADS = 256

    def __init__(self):
        self.lock = threading.Lock()
        self.shared = aligned_zeros(MEMBERS + 2 * LINE * self.MAX_THREADS, np.int64)
        self.address = self.shared.ctypes.data
        self.wakers, self.threads, self.number = [], [], 0

    def run(self, function, arguments, threads):
        threads = min(threads, self.MAX_THREADS)
        if threads == 1 or not self.lock.acquire(blocking=False):
            _alone(function, self.address, arguments)  # alone, nobody uses the barrier
            return
        interrupt = None
        try:
            while len(self.threads) < threads - 1:
                self._hire()
            self.number += 1
            all_awake = finished = False
            # Work that was handed out is finished whatever happens: members use the arguments.
            while not finished:
                try:
                    finished = _together(self.address, self.number, function, threads, arguments, all_awake)
                    if not finished:
                        for waker in self.wakers[: threads - 1]:
                            waker.release()
                        all_awake = True
                except KeyboardInterrupt as error:
                    interrupt = error
        finally:
            self.lock.release()
        if interrupt is not None:
            raise interrupt

    def _hire(self):
        index, waker = len(self.threads), threading.Semaphore(0)
        self.shared[MEMBERS + 2 * LINE * index + ASLEEP] = 1

        def work():
            while not self.shared[MEMBERS + 2 * LINE * index + STOP]:
                waker.acquire()
                _member(self.address, index)

        thread = threading.Thread(target=work, name=f"fastdigit-{index + 1}", daemon=True)
        thread.start()
        self.wakers.append(waker)
        self.threads.append(thread)

    def dismiss(self):
        """End all members, before the interpreter ends."""
        with self.lock:
            for index in range(len(self.threads)):
                self.shared[MEMBERS + 2 * LINE * index + STOP] = 1
                self.wakers[index].release()
            for thread in self.threads:
                thread.join()
            self.wakers, self.threads = [], []


_team = _Team()
atexit.register(lambda: _team.dismiss())


def _new_team():
    global _team
    _team = _Team()  # the members were threads of the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_team)


def thread_count(threads=None):
    """How many threads to use: ``threads``, else FASTDIGIT_THREADS, else one for each processor.

    Errors: ValueError for what is not an integer of at least 1.
    """
    if threads is None:
        threads = os.environ.get(ENVIRONMENT_VARIABLE) or None
        if threads is None:
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if threads.isdecimal() and int(threads) > 0:
            return int(threads)
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be a number of threads of at least 1, got {threads!r}")
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or threads < 1:
        raise ValueError(f"threads must be an integer of at least 1, got {threads!r}")
    return int(threads)


class Kernel:
    """A function ``(thread, threads, barrier, arguments)`` that a team can run.

    ``Kernel(function)(arguments, threads)`` has ``function`` called once by each of ``threads``
    threads, with ``arguments`` as the address of int64 words. It is compiled at its first use.
    """

    def __init__(self, function):
        self.function = function
        self.__doc__ = function.__doc__

    @cached_property
    def _compiled(self):
        return c_function(self.function)

    @cached_property
    def _address(self):
        return self._compiled.address

    def __call__(self, arguments, threads=None):
        words = np.array(arguments, np.int64)
        self.run(words.ctypes.data, thread_count(threads))

    def run(self, arguments, threads):
        """The same for words that are in memory already, at an address that stays theirs meanwhile."""
        _team.run(self._address, arguments, threads)
