"""Recipes in the words of a training repo, one file a format."""
