"""What tpu_report and tpu_cost are made of: chips, the compiled program as text, prices, parts of a step."""
