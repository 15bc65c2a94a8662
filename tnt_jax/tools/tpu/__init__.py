"""The parts of tpu_report: chips, the compiled step, its HLO text, cost estimates."""
