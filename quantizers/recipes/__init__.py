"""Post-training quantization techniques as steps of recipes: how the weights of a network are chosen."""

from quantizers.recipes.recipe import NAMED, STEPS, Recipe, quantize_by, recipe_label, rewritten
from quantizers.recipes.steps import ROUND, Step, describe_step

__all__ = [
    "NAMED",
    "ROUND",
    "STEPS",
    "Recipe",
    "Step",
    "describe_step",
    "quantize_by",
    "recipe_label",
    "rewritten",
]
