"""Training under Ray Train: the one room of `training` that imports ray.

    driver      train_under_ray: places workers, watches them, returns what was done
    on_worker   each worker's side: backend, feed, loop
    warm        one worker on the embedded Ray: in a process that earlier runs have warmed, without Ray Train
    elastic     when a run grows and shrinks with its cluster; sizes: which numbers of workers can take its steps
    restarts    another controller where Ray's died
    budgets     how often that and the rest may happen: counted over all controllers of a run
    slices      XlaConfig: what PyTorch/XLA workers need, on TPU slices and off them
    stops       what the driver asks of its workers: to stop, or to make room for another number of them
    places      which host is where in which slice: arithmetic, without ray
    watch       a thread that goes on looking where a look fails, for the driver and for the bars of data stages

Nothing is imported here: Ray reads whether tokens are in use when it is first imported, so that comes after
`RaySession.start`.
"""
