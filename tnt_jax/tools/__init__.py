"""Small programs with a main of their own: python -m tnt_jax.tools.NAME."""
