"""The engine that runs a stage: configs, inputs, fingerprints, leases, shards and the runner."""
