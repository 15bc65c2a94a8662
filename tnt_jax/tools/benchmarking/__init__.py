"""The processes that tnt_jax.tools.benchmark times: one side of a comparison each, in turns."""
