"""Simulate a generative model retrained on samples curated by several preferences at once."""
from plural_jax import density, rewards
from plural_jax.grid import Grid
from plural_jax.landscape import Landscape
from plural_jax.process import Process, run
