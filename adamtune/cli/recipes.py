"""`adamtune recipes`: the recipes that come with adamtune."""

from __future__ import annotations

from typing import Annotated

import typer

from adamtune.cli.completing import recipe_names
from adamtune.cli.help_text import help_of
from adamtune.errors import ExitCode

recipes_app = typer.Typer(rich_markup_mode=None)


def recipes(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> int:
    """List the recipes that come with adamtune; their names stand wherever a recipe file is asked for.

    Example: adamtune recipes show fine-tune
    """
    if context.invoked_subcommand is not None:
        return ExitCode.DONE
    from adamtune.recipe import load_recipe
    from adamtune.report import terminal
    from adamtune.shipped import shipped_names, shipped_path

    about = {name: str(load_recipe(shipped_path(name)).provenance["about"]) for name in shipped_names()}
    if json:
        listed = [{"name": name, "about": text} for name, text in about.items()]
        terminal.print_json({"version": 1, "recipes": listed})
    else:
        terminal.print_recipes(about)
    return ExitCode.DONE


def show(
    name: Annotated[
        str,
        typer.Argument(help="One of `adamtune recipes`.", show_default=False, autocompletion=recipe_names),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the recipe as JSON.")] = False,
) -> int:
    """Print a recipe, with where each value comes from.

    Example: adamtune recipes show fine-tune > my_recipe.yaml
    """
    from adamtune.recipe import load_recipe
    from adamtune.report import terminal
    from adamtune.shipped import shipped_path

    path = shipped_path(name)
    if json:
        terminal.print_json(load_recipe(path).to_dict())
    else:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
    return ExitCode.DONE


recipes_app.callback(invoke_without_command=True, **help_of(recipes))(recipes)
recipes_app.command(**help_of(show))(show)
