"""What a training run reports: metrics, goodput, chip-seconds."""
