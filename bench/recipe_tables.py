"""Tables of what recipes reached: of all in ``bench/recipes/README.md``, of some in ``bench/LIMITS.md``."""

import json
import re
import statistics

from . import acceptance, recipes, tables
from .measures import FIGURES, left_right

PAGE, LIMITS = recipes.FOLDER / "README.md", recipes.HERE / "LIMITS.md"
DEFORMED = "plain-800", "elastic-800", "unusual-800", "plain-1024", "unusual-1024"
FITTED = "plain-256", "plain-800", "elastic-800", "unusual-800", "pgd-512"
UNSURE = "certain-256"
ATTACKED = "plain-512", "pgd-512", "fgsm-512"


def results(name):
    """The rows of a recipe, none if it was not trained yet."""
    file = recipes.RESULTS / f"recipe_{name}.json"
    return json.loads(file.read_text())["seeds"] if file.exists() else []


def values(name, figure, asked):
    """A figure for each seed: of itself, or in comparison with the mean of the recipe it is asked against."""
    found = [FIGURES[figure].value(row) for row in results(name)]
    if "against" not in asked:
        return found
    others = [FIGURES[figure].value(row) for row in results(asked["against"])]
    return [FIGURES[figure].change(value, statistics.fmean(others)) for value in found] if others else []


def reached(found):
    """Mean and range."""
    if not found:
        return "–"
    mean = f"{statistics.fmean(found):.2%}"
    return mean if len(found) == 1 else f"{mean} ({min(found):.2%} to {max(found):.2%})"


def all_recipes():
    """A row for each figure of each recipe, those without a result too."""
    made = tables.Table("recipes", "Recipes", ("recipe", "figure", "asked", "aim", "reached", "seeds"))
    for name in recipes.names():
        recipe = recipes.read(name)
        for figure in recipes.figures(recipe):
            asked, about = recipe[figure], FIGURES[figure]
            what = f"{about.changed} {asked['against']}" if "against" in asked else about.what
            sign = "≤" if about.less_is_better and "against" not in asked else "≥"
            numbers = [f"{sign} {100 * asked[key]:.4g}%" if key in asked else "" for key in ("asked", "aim")]
            found = values(name, figure, asked)
            link = f"[{name}]({name}.toml)"
            made.rows.append((link, what, *numbers, reached(found), str(len(found) or "–")))
    return made


def deformations():
    """Trainings on images that are deformed or not: what they read of corrupted images, and of whose."""
    columns = ("trained on images", "read as they are", "corrupted, on average", "points more")
    columns += ("worst tenth of writers misread", "cut by", "seeds")
    made = tables.Table("deformations", "Deformations", columns)
    found = {}
    for name in DEFORMED:
        if not (rows := results(name)):
            continue
        recipe = recipes.read(name)
        figures = ("accuracy", "corrupted", "worst_writers")
        found[name] = [statistics.fmean(map(FIGURES[each].value, rows)) for each in figures]
        clean, corrupted, worst = found[name]
        more = cut = ""
        if plain := found.get(recipe["corrupted"].get("against")):
            more, cut = f"{100 * (corrupted - plain[1]):+.1f}", f"{1 - worst / plain[2]:.0%}"
        numbers = f"{clean:.2%}", f"{corrupted:.1%}", more, f"{worst:.1%}", cut
        made.rows.append((f"[{recipe['title']}](recipes/{name}.toml)", *numbers, str(len(rows))))
    return made


def attacks():
    """Trainings against an adversary or none: what they read under attack."""
    columns = ("training", "clean", "PGD-40 within 0.05", "0.1", "0.2", "FGSM within 0.25", "seeds")
    made = tables.Table("attacks", "Attacks", columns)
    under = (("pgd", 0.05), ("pgd", 0.1), ("pgd", 0.2), ("fgsm", 0.25))
    for name in ATTACKED:
        if not (rows := results(name)):
            continue
        found = [[row["accuracy"] for row in rows]]
        found += [[left_right(row, *attack) for row in rows] for attack in under]
        means = [f"{statistics.fmean(each):.2%}" for each in found]
        made.rows.append((_linked(name), *means, str(len(rows))))
    return made


def overfitting():
    """What trainings read in their last epoch, of images as they are trained on, and of the test images."""
    columns = (
        "training",
        "read in the last epoch, as trained on",
        "read of the test images",
        "points less",
        "seeds",
    )
    made = tables.Table("overfitting", "Overfitting", columns)
    for name in FITTED:
        if not (rows := results(name)):
            continue
        own, others = (
            statistics.fmean(row[key] for row in rows) for key in ("training_accuracy", "accuracy")
        )
        link = f"[{recipes.read(name)['title']}](recipes/{name}.toml)"
        made.rows.append((link, f"{own:.2%}", f"{others:.2%}", f"{100 * (own - others):.2f}", str(len(rows))))
    return made


def ambiguity():
    """How far probabilities are true, and what is left misread where the least certain are not answered."""
    columns = ("", "mean", "least", "most")
    made = tables.Table("ambiguity", "Ambiguity", columns)
    rows = results(UNSURE)
    named = {
        "calibration error, as trained": lambda row: row["calibration"]["error_before"],
        "calibration error, at the temperature of the images held back": FIGURES["calibration_error"].value,
        "misread of all": lambda row: 1 - row["accuracy"],
        "misread of the 99 % that it is surest of": FIGURES["error_at_99"].value,
    }
    for name, value in named.items() if rows else ():
        found = list(map(value, rows))
        made.rows.append((name, *(f"{of(found):.2%}" for of in (statistics.fmean, min, max))))
    return made


def _linked(name):
    """How a recipe trains, its title without the network."""
    return f"[{recipes.read(name)['title'].partition(', ')[2]}](recipes/{name}.toml)"


TABLES = (
    (PAGE, all_recipes),
    *((LIMITS, make) for make in (deformations, overfitting, ambiguity, attacks)),
)


def in_page(page, name):
    """The table of that name as a page has it."""
    return re.search(
        f"<!-- table: {name} -->\n(.*?)\n{acceptance.END}", page.read_text(encoding="utf-8"), re.DOTALL
    )[1]


def write():
    for page, make in TABLES:
        table = make()
        acceptance.put_between_marks(page, table.name, tables.markdown(table))
