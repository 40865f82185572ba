"""Pictures: densities over the rounds, as ridgelines and as animations, and the one style of every figure."""

from plural_jax.figures.animations import animate
from plural_jax.figures.base import DENSITY_MAP as DENSITY_MAP
from plural_jax.figures.base import PREFERENCE_COLORS, style
from plural_jax.figures.base import SEQUENCE_MAP as SEQUENCE_MAP
from plural_jax.figures.base import caption as caption
from plural_jax.figures.base import density_image as density_image
from plural_jax.figures.base import listed as listed
from plural_jax.figures.base import panels as panels
from plural_jax.figures.base import sequence_colors as sequence_colors
from plural_jax.figures.base import share_labels as share_labels
from plural_jax.figures.densities import ridgelines

__all__ = ["PREFERENCE_COLORS", "animate", "ridgelines", "style"]
