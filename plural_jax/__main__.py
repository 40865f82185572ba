"""`python -m plural_jax` is `plural-jax`."""

import sys

from plural_jax.cli import main

sys.exit(main())
