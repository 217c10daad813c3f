"""Training under Ray Train: the one folder of `training` that imports ray.

driver      train_under_ray: places workers, watches them, returns a summary
on_worker   each worker's side: backend, feed, loop
warm        one worker on the embedded Ray: in a process that earlier runs have warmed, without Ray Train
elastic     when a run grows and shrinks with its cluster
sizes       the numbers of workers that can share a run's steps
restarts    a new controller after Ray's controller has died
budgets     limits on failures and lost machines, counted over all controllers of a run
slices      XlaConfig: what PyTorch/XLA workers need, on TPU slices and off them
stops       what the driver asks of its workers: to stop, or to make room for another number of them
places      the place of each host in its slice: arithmetic, without ray
watch       a thread that goes on looking after a failed look, for the driver and for the bars of data stages

Nothing is imported here: Ray reads whether tokens are in use when it is first imported, so that import comes after
`RaySession.start`.
"""
