"""What tpu_report is made of: chips, the compiled step, its text, cost estimates."""
