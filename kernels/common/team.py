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
import itertools
import os
import threading
import time
from functools import cache, cached_property

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic

from .compiling import c_function, inner, jit
from .memory import aligned_zeros, atomic_add, atomic_read, atomic_write

ENVIRONMENT_VARIABLE = "FASTDIGIT_THREADS"

# Words (int64) of the memory that the members share. Whole pairs of cache lines for each purpose:
# processors fetch lines in pairs, and a line that two threads write travels between them.
LINE = 16
TAKEN, OWNER, CALLER_DONE = 0, 1, 2  # not 0: in use; for which piece of work; whose caller's share is done
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


# Of x86's register of what floating-point numbers do: operands and results below the smallest normal number
# count as zero. Velocities of weights that get no gradient fade away into such numbers, and an Intel core
# takes some 150 cycles for each.
SUBNORMAL_IS_ZERO = 0x8040


@intrinsic
def call(typing, function, thread, threads, barrier, arguments):
    """Call the kernel at an address, with SUBNORMAL_IS_ZERO on x86."""

    def generate(context, build, signature, arguments):
        word = ir.IntType(64)
        kernel = ir.FunctionType(ir.VoidType(), [word] * 4).as_pointer()
        x86 = build.module.triple.startswith(("x86_64", "i686"))
        if x86:
            flags, load_flags = _flags(build)
            before = build.load(flags)
            load_flags(build.or_(before, before.type(SUBNORMAL_IS_ZERO)))
        build.call(build.inttoptr(arguments[0], kernel), arguments[1:])
        if x86:
            load_flags(before)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


def _flags(build):
    """(where x86's flags of floating-point numbers have just been written to, what loads others)"""
    byte, word = ir.IntType(8), ir.IntType(32)
    flags = alloca_once(build, word)
    kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer()])

    def access(name):
        function = build.module.declare_intrinsic(f"llvm.x86.sse.{name}", (), kind)
        build.call(function, [build.bitcast(flags, byte.as_pointer())])

    def load_flags(value):
        build.store(value, flags)
        access("ldmxcsr")

    access("stmxcsr")
    return flags, load_flags


@inner
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
def _take(shared, number):
    """True if the team was free, and is now at work on piece ``number``."""
    if atomic_add(shared + 8 * TAKEN, 1) == 0:
        atomic_write(shared + 8 * OWNER, number)
        return True
    atomic_add(shared + 8 * TAKEN, -1)
    return False


@jit
def _together(shared, number, function, threads, arguments, all_awake):
    """Hand out piece ``number`` of work, do the caller's share, and return True when all is done.

    A team that is busy is not waited for: the caller does everything. False where a member is asleep,
    before the caller's share is begun. Called again with ``all_awake`` it goes on where it was, or
    returns True at once if it was done.
    """
    if not all_awake:
        if threads == 1 or not _take(shared, number):
            call(function, 0, 1, shared, arguments)  # alone, nobody uses the barrier
            return True
        for thread in range(1, threads):
            member = shared + 8 * (MEMBERS + 2 * LINE * (thread - 1))
            atomic_write(member + 8 * FUNCTION, function)
            atomic_write(member + 8 * THREAD, thread)
            atomic_write(member + 8 * THREADS, threads)
            atomic_write(member + 8 * ARGUMENTS, arguments)
            atomic_write(member + 8 * WORK, number)
        for thread in range(1, threads):
            if atomic_read(shared + 8 * (MEMBERS + 2 * LINE * (thread - 1) + ASLEEP)) == 1:
                return False
    elif atomic_read(shared + 8 * OWNER) != number:
        return True
    if atomic_read(shared + 8 * CALLER_DONE) != number:
        call(function, 0, threads, shared + 8 * BARRIER, arguments)
        atomic_write(shared + 8 * CALLER_DONE, number)
    for thread in range(1, threads):
        turns = 0
        while atomic_read(shared + 8 * (MEMBERS + 2 * LINE * (thread - 1) + DONE)) != number:
            turns += 1
            if turns < YIELD_AFTER:
                _pause()
            else:
                _sched_yield()
    atomic_write(shared + 8 * OWNER, 0)
    atomic_add(shared + 8 * TAKEN, -1)
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
            call(function, thread, threads, shared + 8 * BARRIER, arguments)
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
        self.shared = aligned_zeros(MEMBERS + 2 * LINE * self.MAX_THREADS, np.int64)
        self.address = self.shared.ctypes.data
        self.numbers, self.hiring = itertools.count(1), threading.Lock()
        self.wakers, self.threads, self.dismissed = [], [], False

    def run(self, function, arguments, threads):
        if threads - 1 > len(self.threads):
            threads = self._hire(threads)
        work = self.address, next(self.numbers), function, threads, arguments
        # A handler of a signal can raise anywhere here. Work that was handed out is finished all the
        # same, as members use the arguments; compiled code alone takes the team and gives it back.
        finished, interrupt = False, None
        try:
            finished = _together(*work, False)
        except BaseException as error:
            interrupt = error
        while not finished:
            try:
                for waker in self.wakers[: threads - 1]:
                    _release(waker)
                finished = _together(*work, True)
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _hire(self, threads):
        """Have as many threads as that, with the caller, or as many as there can be: their number."""
        if not self.dismissed and self.hiring.acquire(blocking=False):
            try:
                while len(self.threads) < min(threads, self.MAX_THREADS) - 1:
                    self._hire_one()
                self.hiring.release()
            except RuntimeError:  # the system gives no more: a limit of the container, or the end is near
                self.hiring.release()
            except BaseException:
                _new_team()  # it is not known whether the one who was being hired is at work
                raise
        return min(threads, len(self.threads) + 1)

    def _hire_one(self):
        index, waker = len(self.threads), threading.Lock()
        waker.acquire()
        self.shared[MEMBERS + 2 * LINE * index + ASLEEP] = 1
        name = f"fastdigit-{index + 1}"
        member = threading.Thread(target=self._be_member, args=(index, waker), name=name, daemon=True)
        member.start()
        self.wakers.append(waker)
        self.threads.append(member)

    def _be_member(self, index, waker):
        while not self.shared[MEMBERS + 2 * LINE * index + STOP]:
            waker.acquire()
            _member(self.address, index)

    def dismiss(self):
        """End all members, before the interpreter ends. Later callers do their work alone."""
        if self.dismissed:
            return  # else it would wait for itself: the team stays taken
        self.dismissed = True
        until = time.monotonic() + 10  # the work of a daemon thread may never end
        while not _take(self.address, next(self.numbers)):
            if time.monotonic() > until:
                return
            time.sleep(0.001)
        for index, waker in enumerate(self.wakers):
            self.shared[MEMBERS + 2 * LINE * index + STOP] = 1
            _release(waker)
        for thread in self.threads:
            thread.join()


def _release(waker):
    """Let a member pass its lock, now or when it comes to it.

    A threading.Semaphore stays locked for ever if a signal's handler raises at the wrong moment.
    """
    if waker.locked():
        waker.release()


_team = _Team()
atexit.register(lambda: _team.dismiss())


def _new_team():
    global _team
    _team = _Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_team)  # the members were threads of the parent


@cache
def _processors():
    """Those that this process may use, as it was when it asked first."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(threads=None):
    """How many threads to use: ``threads``, else FASTDIGIT_THREADS, else one for each processor.

    At most as many as a team can have: working memory is allocated for each.
    Errors: ValueError for what is not an integer of at least 1.
    """
    if threads is None:
        threads = os.environ.get(ENVIRONMENT_VARIABLE) or None
        if threads is None:
            return _processors()
        if threads.isdecimal() and int(threads) > 0:
            return min(int(threads), _Team.MAX_THREADS)
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be a number of threads of at least 1, got {threads!r}")
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or threads < 1:
        raise ValueError(f"threads must be an integer of at least 1, got {threads!r}")
    return min(int(threads), _Team.MAX_THREADS)


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
