"""Training, evaluation and tuning."""
