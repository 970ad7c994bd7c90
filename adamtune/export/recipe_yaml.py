"""The recipe as adamtune itself writes and reads it."""

from __future__ import annotations

from adamtune.export.format import Context, Format, Settings
from adamtune.recipe import Recipe


def _settings(recipe: Recipe, context: Context) -> Settings:
    return Settings(recipe.to_dict())


FORMAT = Format("yaml", "adamtune.load_recipe", "yaml", _settings, whole=Recipe.to_yaml)
