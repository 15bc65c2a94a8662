"""The fused inner block for TPUs: one Pallas kernel forward, one backward."""

from tnt_jax.models.pallas.block import inner_block, inner_block_lanes

__all__ = ["inner_block", "inner_block_lanes"]
