"""Which accesses of a kernel's threads are ordered, and which could meet: for :mod:`.block`.

Each thread has a clock that ticks whenever it tells others what it has done: at a barrier, at an arrival at
an mbarrier, at a fence. Each knows up to which tick of every other it may rely on. A record of an access
holds who did it and at which tick; an access of somebody who does not know of that tick, one of the two
writing, is a race. (Vector clocks, as in Flanagan and Freund, "FastTrack", PLDI 2009.)

What runs beside the threads has a clock of its own: the products of each warpgroup, whose ticks are the
groups that they are committed in and that are known of after the wait, and the copies that each mbarrier
counts, known of after its phase. They reach shared memory by another way than threads (the async proxy): what
a thread wrote they may rely on only if a fence.proxy.async lies between. Blocks know of each other through
grid barriers, and through words that one changes with release and the other reads with acquire: such a reader
may rely on what all who have changed the word so far had known of.

Shared memory is looked at in words of four bytes. Of each the last write is remembered, and the last read of
each warp. Of the GPU's memory words and single bytes are remembered apart, of each the last write, the last
read, and whether several blocks have read it since they last knew of all others. Atomics are not looked at as
accesses.
"""

import numpy as np

MBARRIERS = 64  # of a block
GROUP = 128  # threads of a warpgroup


class Races:
    """Of one block. The methods that look at accesses return what is wrong, or None."""

    def __init__(self, threads, shared_bytes, index, everywhere):
        groups, warps, words = -(-threads // GROUP), -(-threads // 32), shared_bytes // 4 + 1
        self.threads, self.warps = threads, warps
        self.index, self.everywhere = index, everywhere
        self.clock = np.ones(threads, np.int32)
        # know[0][t, u]: the last tick of u that thread t may rely on; know[1]: and what it starts beside it.
        self.know = np.zeros((2, threads, threads + groups + MBARRIERS), np.int32)
        self.copiers = {}  # of each mbarrier, by its address: column of ``know``
        self.ticks = np.ones(MBARRIERS, np.int32)  # of the copies that they count
        self.met = None  # [t, b]: how many releases of block b thread t knows of
        self.epoch = np.zeros(threads, np.int32)  # the least of these
        self.writer, self.written = (np.zeros(words, np.int32) for _ in range(2))  # who, and at which tick
        self.reader, self.read = (np.zeros((words, warps + groups), np.int32) for _ in range(2))

    # -- what orders accesses
    def meet(self, threads):
        """These threads (indices) were at one barrier."""
        self.know[0, threads, threads] = self.clock[threads]
        these = slice(None) if len(threads) == self.threads else threads
        self.know[:, these] = self.know[:, these].max(1, keepdims=True)
        self.clock[threads] += 1
        if self.met is not None:
            self._learn_of_blocks(threads, self.met[threads].max(0))

    def meet_in_warps(self, threads):
        for warp in np.unique(threads // 32):
            self.meet(threads[threads // 32 == warp])

    def leave_for_grid(self, threads):
        """These threads have reached a barrier of the whole grid."""
        self.meet(threads)
        self._tell(self.know[0, threads[0], : self.threads])

    def meet_grid(self, threads):
        """And so have those of all other blocks."""
        self._learn_of_blocks(threads, [len(told) for told in self.everywhere.told])

    def released(self, thread, address):
        """A thread changes a word with release."""
        self._tell(self.told(thread)[0, : self.threads])
        self.everywhere.released.setdefault(address, {})[self.index] = len(self.everywhere.told[self.index])

    def acquired(self, thread, address):
        """A thread reads a word with acquire."""
        known = np.zeros(len(self.everywhere.told), np.int32)
        for block, count in self.everywhere.released.get(address, {}).items():
            known[block] = count
        self._learn_of_blocks([thread], known)

    def _tell(self, ticks):
        told = self.everywhere.told[self.index]
        if told and (ticks < told[-1]).any():
            raise NotImplementedError("releases of threads of a block that do not know of each other's")
        told.append(ticks.copy())

    def _learn_of_blocks(self, threads, known):
        if self.met is None:
            self.met = np.zeros((self.threads, len(self.everywhere.told)), np.int32)
        met = np.maximum(self.met[threads], known)
        self.met[threads] = met
        self.epoch[threads] = np.delete(met, self.index, 1).min(1, initial=np.iinfo(np.int32).max)

    def knows_of(self, thread, block, who, tick):
        """Whether each of these threads knows that the thread ``who`` of another block has reached a tick."""
        known = np.zeros(len(thread), bool)
        if self.met is not None:
            met = self.met[thread, block]
            for one, count in np.unique(np.stack([block, met]), axis=1).T:
                if count:
                    these = (block == one) & (met == count)
                    known[these] = tick[these] <= self.everywhere.told[one][count - 1][who[these]]
        return known

    def told(self, thread):
        """What a thread that arrives somewhere makes known."""
        self.know[0, thread, thread] = self.clock[thread]
        self.clock[thread] += 1
        return self.know[:, thread]

    def learn(self, thread, told):
        np.maximum(self.know[:, thread], told, out=self.know[:, thread])

    def open_to_async(self, threads):
        """fence.proxy.async: what these threads know of, what they start beside them may rely on."""
        self.know[0, threads, threads] = self.clock[threads]
        self.know[1, threads] = self.know[0, threads]
        self.clock[threads] += 1

    def products_ended(self, threads, ended):
        """These threads know that the products of their warpgroups have ended up to these groups of them."""
        columns = self.threads + threads // GROUP
        self.know[0, threads, columns] = np.maximum(self.know[0, threads, columns], ended)

    def copier(self, mbarrier):
        if mbarrier not in self.copiers:
            if len(self.copiers) == MBARRIERS:  # as what the interpreter does not know: UnsupportedPTX is one
                raise NotImplementedError(f"more than {MBARRIERS} mbarriers in a block")
            self.copiers[mbarrier] = len(self.copiers)
        return self.copiers[mbarrier]

    def copies_arrived(self, mbarrier, told):
        """A phase of the mbarrier ends: ``told``, what it makes known, includes its copies."""
        copier = self.copier(mbarrier)
        told[:, copier - MBARRIERS] = self.ticks[copier]
        self.ticks[copier] += 1

    # -- accesses to shared memory
    def shared(self, byte, size, thread, write):
        """Accesses of so many bytes at these addresses by these threads, in one instruction."""
        if write and len(np.unique(byte)) != len(byte):
            return "race: two threads write one shared address in one instruction"
        word = byte // 4
        if size > 4:
            word = (word[:, None] + np.arange(size // 4)).ravel()
            thread = np.repeat(thread, size // 4)
        writer = self.writer[word]
        late = (writer != thread) & (self.know[0][thread, writer] < self.written[word])
        if late.any():
            return self._race(word[late], "written", writer[late], write, thread[late])
        if not write:
            warp = thread // 32
            self.reader[word, warp], self.read[word, warp] = thread, self.clock[thread]
            return None
        reader, thread_of = self.reader[word], thread[:, None]
        late = (reader != thread_of) & (self.know[0][thread_of, reader] < self.read[word])
        if late.any():
            at, warp = (found[0] for found in np.nonzero(late))
            return self._race(word[[at]], "read", reader[at, [warp]], write, thread[[at]])
        self.writer[word], self.written[word] = thread, self.clock[thread]
        self.read[word] = 0
        return None

    def products_read(self, byte, first, number):
        """The warpgroup whose first thread this is multiplies with what is at these addresses, in its group
        of products of this number, from 1 on."""
        word, group = np.unique(byte // 4), slice(first, first + GROUP)
        writer, written = self.writer[word], self.written[word]
        known, opened = self.know[:, group].min(1)
        late = known[writer] < written
        if late.any():
            return self._race(word[late], "written", writer[late], False, [f"wgmma of {first}…"])
        late = (writer < self.threads) & (opened[writer] < written)
        if late.any():
            return self._closed(word[late], writer[late], "wgmma reads")
        column = self.warps + first // GROUP
        self.reader[word, column] = self.threads + first // GROUP
        self.read[word, column] = number
        return None

    def copy_writes(self, byte, thread, mbarrier):
        """A copy that this thread has started and the mbarrier counts goes to these addresses."""
        word = np.unique(byte // 4)
        wrong = self._copy_after_writes(word, thread, True)
        if wrong:
            return wrong
        reader = self.reader[word]
        late = (reader != thread) & (self.know[0, thread][reader] < self.read[word])
        if late.any():
            at, column = (found[0] for found in np.nonzero(late))
            return self._race(word[[at]], "read", reader[at, [column]], True, [f"a copy of {thread}"])
        copier = self.copier(mbarrier)
        self.writer[word] = self.know.shape[2] - MBARRIERS + copier
        self.written[word] = self.ticks[copier]
        self.read[word] = 0
        return None

    def copy_reads(self, byte, thread):
        """A copy that this thread has started comes from these addresses."""
        word = np.unique(byte // 4)
        wrong = self._copy_after_writes(word, thread, False)
        return wrong or self.shared(4 * word, 4, np.full(len(word), thread), False)

    def _copy_after_writes(self, word, thread, write):
        """Whether a copy that this thread has started may rely on what was written there before."""
        writer, written = self.writer[word], self.written[word]
        late = (writer != thread) & (self.know[0, thread][writer] < written)
        if late.any():
            return self._race(word[late], "written", writer[late], write, [f"a copy of {thread}"])
        late = (writer < self.threads) & (self.know[1, thread][writer] < written)
        if late.any():
            return self._closed(word[late], writer[late], f"a copy {'writes' if write else 'reads'}")
        return None

    def of_mbarrier(self, made, thread, by_copy=False):
        """A thread uses an mbarrier that was initialised by (who, at which tick)."""
        who, tick = made
        if who != thread and self.know[0, thread, who] < tick:
            return f"race: thread {who} has initialised the mbarrier, and no barrier since"
        if by_copy and self.know[1, thread, who] < tick:
            return "a copy's mbarrier was initialised, and no fence.proxy.async since"
        return None

    def _name(self, who):
        if not isinstance(who, (int, np.integer)):
            return who
        if who < self.threads:
            return f"thread {who}"
        first = (who - self.threads) * GROUP
        return f"wgmma of {first}…" if first < self.threads else "a copy"

    def _race(self, words, did, others, write, threads):
        now = "written" if write else "read"
        return (
            f"race: shared word at {4 * int(words[0])} was {did} by {self._name(others[0])} "
            f"since the last barrier, {now} by {self._name(threads[0])}"
        )

    def _closed(self, words, writers, does):
        return (
            f"{does} the shared word at {4 * int(words[0])} that {self._name(writers[0])} wrote, "
            "and no fence.proxy.async since"
        )

    # -- accesses to the GPU's memory
    def anywhere(self, byte, size, thread, write):
        """As :meth:`shared`, addresses being places in the heap."""
        if write and len(np.unique(byte)) != len(byte):
            return "race: two threads write one address in one instruction"
        unit = 4 if size >= 4 else 1
        units = byte[:, None] // unit + np.arange(size // unit)
        return self.everywhere.access(self, units.ravel(), unit, np.repeat(thread, size // unit), write)

    def pieces(self, start, size, thread):
        """Each of these threads reads so many bytes from a multiple of 4 on."""
        count = -(-size // 4)
        units = start[:, None] // 4 + np.arange(count)
        return self.everywhere.access(self, units.ravel(), 4, np.repeat(thread, count), False)

    def piece(self, start, end, thread, write):
        """One thread reads or writes all from one place to another."""
        units = np.arange(start // 4, -(-end // 4))
        return self.everywhere.access(self, units, 4, np.full(len(units), thread), write)


class Everywhere:
    """The GPU's memory during one launch, and what its blocks know of each other."""

    def __init__(self, size, blocks):
        self.size, self.tables = size, {}
        self.told = [[] for _ in range(blocks)]  # of each release, which ticks of its threads were known of
        self.released = {}  # {address: {block: how many releases it had made by then}}

    def _table(self, unit):
        if unit not in self.tables:  # lazily: pages that nobody uses take no memory
            names = [
                f"{what}_{of}" for what in ("write", "read") for of in ("thread", "tick", "block", "grid")
            ]
            count = self.size // unit + 1
            self.tables[unit] = {name: np.zeros(count, np.int32) for name in (*names, "several")}
        return self.tables[unit]

    def access(self, block, units, unit, thread, write):
        table, me, grid = self._table(unit), block.index + 1, block.epoch[thread]
        late = self._late(block, units, thread, table, "write")
        if late.any():
            return self._race(table, "write", units[late], unit, thread[late], write, me)
        if not write:
            other = table["read_block"][units]
            several = (other != 0) & (other != me) & (table["read_grid"][units] == grid)
            table["several"][units[several]] = grid[several] + 1
            self._note(block, units, thread, table, "read")
            return None
        late = self._late(block, units, thread, table, "read") | (table["several"][units] == grid + 1)
        if late.any():
            return self._race(table, "read", units[late], unit, thread[late], write, me)
        self._note(block, units, thread, table, "write")
        return None

    @staticmethod
    def _note(block, units, thread, table, what):
        table[f"{what}_thread"][units], table[f"{what}_tick"][units] = thread, block.clock[thread]
        table[f"{what}_block"][units], table[f"{what}_grid"][units] = block.index + 1, block.epoch[thread]

    @staticmethod
    def _late(block, units, thread, table, what):
        """Which of the last writes (or reads) the threads do not know of."""
        other = table[f"{what}_block"][units]
        if not other.any():
            return np.zeros(len(units), bool)
        mine, who = other == block.index + 1, table[f"{what}_thread"][units]
        tick = table[f"{what}_tick"][units]
        late = mine & (who != thread) & (block.know[0][thread, np.where(mine, who, 0)] < tick)
        others = (other != 0) & ~mine
        if others.any():
            about = other[others] - 1, who[others], tick[others]
            late[others] = ~block.knows_of(thread[others], *about)
        return late

    @staticmethod
    def _race(table, did, units, unit, threads, write, me):
        who, whose = table[f"{did}_thread"][units[0]], table[f"{did}_block"][units[0]]
        other = "its own block" if whose == me else f"block {whose - 1} since the last grid barrier"
        did = "written" if did == "write" else "read"
        return (
            f"race: global memory at {int(units[0]) * unit} was {did} by thread {who} of {other}, "
            f"{'written' if write else 'read'} by thread {threads[0]}, which nothing has told of it"
        )
