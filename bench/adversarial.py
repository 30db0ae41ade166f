"""Trainings under attack on MNIST, and how well what they give holds out on all test images.

    python -m fastdigit.bench.adversarial RECIPE [--epochs 30] [--hidden 1024,1024] [--json FILE]

RECIPE is one of RECIPES; options (``--help``) try other numbers than its own. A result says which they were,
and by which command it was made. Exit status 1 if anything asked of the recipe is missed.
"""

import argparse
import json
import re
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import fastdigit as fd
from fastdigit.robust import substitute

from . import acceptance, machine, tables

NAME = "attacks"
RESULTS = Path(__file__).resolve().parent / "results"

PGD_40 = fd.PGD(0.1, step=0.01, steps=40)
FGSM_25 = fd.FGSM(0.25)


@dataclass(frozen=True)
class Recipe:
    """A training, and what is asked of the network afterwards: accuracies without and under ``attack``."""

    attack: fd.FGSM | fd.PGD
    clean: float | None = None  # the least that is asked
    attacked: float | None = None
    hidden: tuple[int, ...] = (512, 512)
    epochs: int = 12
    batch: int = 128
    rate: float = 0.1
    weight_decay: float = 0.0
    dropout: float = 0.0
    adversary: fd.FGSM | fd.PGD | None = None
    clean_share: float = 0.0
    seed: int = 0


# FGSM from a random place, on half of each batch: from the image itself, and on all of them, a network learns
# to read the attack instead of the digit. Wong, Rice, Kolter, "Fast is better than free", ICLR 2020.
FROM_A_RANDOM_PLACE = fd.PGD(0.25, step=1.25 * 0.25, steps=1)

RECIPES = {
    "plain": Recipe(PGD_40),
    "pgd": Recipe(PGD_40, 0.988, 0.89, epochs=18, weight_decay=1e-4, adversary=fd.PGD(0.1, steps=3)),
    "fgsm": Recipe(FGSM_25, 0.975, 0.82, adversary=FROM_A_RANDOM_PLACE, clean_share=0.5),
}


def train(recipe, data, backend):
    """(the network, its log, the seconds of the training)."""
    sizes = (784, *recipe.hidden, 10)
    net = fd.Network(sizes, backend=backend, dropout=recipe.dropout, seed=recipe.seed)
    optimizer = fd.SGD(recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
    begun = time.perf_counter()
    log = fd.fit(
        net,
        data.train,
        optimizer=optimizer,
        epochs=recipe.epochs,
        batch_size=recipe.batch,
        adversary=recipe.adversary,
        clean_share=recipe.clean_share,
        seed=recipe.seed,
        progress=fd.Progress(),
    )
    return net, log, time.perf_counter() - begun


def measure(recipe, net, data):
    """What is left without attack and under PGD and FGSM, with checks; how long an attack takes."""
    other = substitute(data.train, net.classes, seed=recipe.seed + 1)
    pgd = fd.adversarial_robustness(net, data.test, PGD_40, (0.05, 0.1, 0.2), other=other, seed=recipe.seed)
    begun, worked = time.perf_counter(), time.process_time()
    fd.attack(net, data.test.images, data.test.labels, PGD_40)
    took = {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - worked}
    fgsm = fd.adversarial_robustness(net, data.test, FGSM_25, (0.1, 0.25), other=other, seed=recipe.seed)
    own = pgd if recipe.attack == PGD_40 else fgsm
    (left,) = (each.accuracy for each in own.attacked if each.epsilon == recipe.attack.epsilon)
    return {
        "clean": pgd.clean,
        "clean_asked": recipe.clean,
        "attacked": left,
        "attacked_asked": recipe.attacked,
        "met": pgd.clean >= (recipe.clean or 0) and left >= (recipe.attacked or 0),
        "pgd": pgd.as_dict(),
        "fgsm": fgsm.as_dict(),
        "all_test_images_attacked_by_pgd_40_in": took,
    }


def table():
    """A row for each committed result."""
    made = tables.Table(
        NAME, "Attacks", ("training", "clean", "PGD-40 within 0.05", "0.1", "0.2", "FGSM within 0.25")
    )
    for name in RECIPES:
        results = json.loads((RESULTS / f"adversarial_{name}.json").read_text())
        recipe, accuracies = results["recipe"], [results["clean"]]
        accuracies += [each["accuracy"] for each in results["pgd"]["attacked"]]
        accuracies += [each["accuracy"] for each in results["fgsm"]["attacked"] if each["epsilon"] == 0.25]
        adversary = re.sub(r"step=None, |, restarts=.*(?=\))", "", recipe["adversary"] or "")
        against = f"against {adversary}" if adversary else "on images as they are"
        clean = ", half of a batch left clean" if recipe["clean_share"] == 0.5 else ""
        row = f"`{name}`: {recipe['epochs']} epochs {against}{clean}"
        made.rows.append((row, *(f"{accuracy:.2%}" for accuracy in accuracies)))
    return made


def options_of(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--hidden", type=lambda text: tuple(map(int, text.split(","))))
    for name, kind in (("epochs", int), ("batch", int), ("rate", float), ("weight-decay", float)):
        parser.add_argument(f"--{name}", type=kind)
    for name, kind in (("dropout", float), ("clean-share", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--adversary-steps", type=int, help="of pgd")
    parser.add_argument("--adversary-step", type=float, help="length of a step of pgd")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--model", type=Path, help="where to save the network")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="where to bring the table of all results up to date")
    return parser.parse_args(arguments)


def recipe_of(options):
    """The recipe with what was chosen in place of its own."""
    recipe = RECIPES[options.recipe]
    steps = {"steps": options.adversary_steps, "step": options.adversary_step}
    chosen = {name: value for name, value in steps.items() if value is not None}
    if chosen:
        recipe = replace(recipe, adversary=replace(recipe.adversary, **chosen))
    chosen = {name: getattr(options, name, None) for name in asdict(recipe)}
    return replace(recipe, **{name: value for name, value in chosen.items() if value is not None})


def without_files(arguments):
    """The arguments that a result depends on."""
    files = [i for i, argument in enumerate(arguments) if argument in ("--json", "--model", "--page")]
    return [argument for i, argument in enumerate(arguments) if i not in files and i - 1 not in files]


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    options, data = options_of(arguments), fd.load_mnist()
    recipe = recipe_of(options)
    net, log, seconds = train(recipe, data, options.backend)
    if options.model:
        net.save(options.model)
    found = measure(recipe, net, data)
    print(
        f"clean {found['clean']:.2%} (asked {recipe.clean}), {recipe.attack}: {found['attacked']:.2%}", end=""
    )
    print(f" (asked {recipe.attacked}), trained in {seconds:.0f} s")
    if options.json:
        settings = {
            name: repr(v) if isinstance(v, fd.FGSM | fd.PGD) else v for name, v in vars(recipe).items()
        }
        epochs = [
            {name: getattr(e, name) for name in ("epoch", "loss", "accuracy", "seconds")} for e in log.epochs
        ]
        machine.write(
            options.json,
            command=f"python -m fastdigit.bench.adversarial {shlex.join(without_files(arguments))}",
            recipe={"name": options.recipe, **settings},
            backend=net.backend.device,
            training_seconds=seconds,
            epochs=epochs,
            **found,
        )
    if options.page:
        acceptance.put_between_marks(options.page, NAME, tables.markdown(table()))
    return 0 if found["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
