"""Tables of what recipes reached: of all in ``bench/recipes/README.md``, of some in ``bench/LIMITS.md``."""

import json
import re
import statistics

from . import acceptance, recipes, tables
from .measures import FIGURES, left_right

PAGE, LIMITS = recipes.FOLDER / "README.md", recipes.HERE / "LIMITS.md"
DEFORMED, ATTACKED = ("plain-800", "elastic-800", "unusual-800"), ("plain-512", "pgd-512", "fgsm-512")


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
            numbers = [f"{sign} {asked[key]:.1%}" if key in asked else "" for key in ("asked", "aim")]
            found = values(name, figure, asked)
            link = f"[{name}]({name}.toml)"
            made.rows.append((link, what, *numbers, reached(found), str(len(found) or "–")))
    return made


def deformations():
    """Trainings on images that are deformed or not: what they read of corrupted images, and of whose."""
    columns = ("trained on images", "read as they are", "corrupted, on average", "points more")
    columns += ("worst tenth of writers misread", "cut by", "seeds")
    made = tables.Table("deformations", "Deformations", columns)
    plain = None
    for name in DEFORMED:
        if not (rows := results(name)):
            continue
        clean, corrupted, worst = (
            statistics.fmean(map(FIGURES[each].value, rows))
            for each in ("accuracy", "corrupted", "worst_writers")
        )
        more = cut = ""
        if plain is None:
            plain = corrupted, worst
        else:
            more, cut = f"{100 * (corrupted - plain[0]):+.1f}", f"{1 - worst / plain[1]:.0%}"
        numbers = f"{clean:.2%}", f"{corrupted:.1%}", more, f"{worst:.1%}", cut
        made.rows.append((_linked(name), *numbers, str(len(rows))))
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


def _linked(name):
    """How a recipe trains, its title without the network."""
    return f"[{recipes.read(name)['title'].partition(', ')[2]}](recipes/{name}.toml)"


TABLES = ((PAGE, all_recipes), (LIMITS, deformations), (LIMITS, attacks))


def in_page(page, name):
    """The table of that name as a page has it."""
    return re.search(
        f"<!-- table: {name} -->\n(.*?)\n{acceptance.END}", page.read_text(encoding="utf-8"), re.DOTALL
    )[1]


def write():
    for page, make in TABLES:
        table = make()
        acceptance.put_between_marks(page, table.name, tables.markdown(table))
