"""What runs on a GPU here: whether it is right, and how fast it is beside cuBLAS and the other libraries.

    python -m fastdigit.bench gpu [--out FILE]
    python -m fastdigit.bench.gpu [PART …] [--budget SECONDS] [--seconds-of PART=SECONDS …]
        [--networks small-128 …] [--json FILE]
    python -m fastdigit.bench.gpu_acceptance FILE …

- ``checks``: every operation of the ``cuda`` backend passes the checks of every backend, from data on the
  host that nobody has computed with before; and each way to multiply, at odd shapes, with what follows it.
- ``launches``: microseconds of a launch, of a node of a CUDA graph, of a barrier of the whole GPU.
- ``goals``: milliseconds of an epoch, seconds to an accuracy, seconds of a published comparison.
- ``epochs``: whole trainings of small networks, by the persistent kernel and by graphs of steps in each
  precision, with each optimizer, dropout, clipping, weights and deformations: their weights held against
  those of float64 and of the ``cpu`` backend.
- ``products``: each way to multiply beside cuBLAS through CuPy, first at the squares that something is asked
  of, then at the shapes of the deep network and at other squares while there is time. A product is first held
  against float64, in some rows where it is large, into an output full of NaN; a wrong one gets no time.
- ``bandwidth``: what goes over its arrays once, beside a copy of as many bytes.
- ``steps``: microseconds of a step that is a graph of launches, as they are and with launches that begin
  before the last has ended, to the same weights; of the deep network each launch alone, too.
- ``train``: images per second of whole steps (``bench.train``): the persistent kernel, graphs of steps in
  each precision, and torch and JAX on the same GPU, where they are installed. All sides of a network compile
  at the same time; then they take turns, and each round is in the file when it is over.
- ``sanitizer``: what compute-sanitizer finds in small checks.
- ``cupy``: the checks for the ``cupy`` backend.

Products and passes over memory are timed by the GPU's own clock, in turns with what they are compared with,
over so many calls in a row that they fill 20 ms (at most 150), which the GPU makes after all have been asked
for; medians of seven. Trainings are timed by the host's.

Every part runs in a process of its own, and the checks in a new one after each fault, as what follows a fault
on a GPU fails, too. What a part has found until its time is over counts, and is in the file as soon as it is
found. All parts take less than the budget.
"""
