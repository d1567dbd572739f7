"""Several processes that share one model: started, watched, and led by rank 0.

In: a configuration that asks for ranks, and the steps of an engine. Out: the same answers as of one process.
Knows nothing of: queues, requests, sampling. Only rank 0 schedules and samples; the others compute what they are told.
"""
