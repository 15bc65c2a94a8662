"""The fused inner block for TPUs, one Pallas kernel forward and one backward: `block.inner_block`."""
