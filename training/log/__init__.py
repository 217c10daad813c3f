"""What a training run reports while it runs: metrics, goodput, chip-seconds."""
