"""The scheduler: decides which waiting task goes to which worker, and when.

Reads   hr:requests (group `front`), {shard}:in (group `scheduler`)
Writes  {shard}:backlog:*, {shard}:work:<worker>; refusals to hr:reply:<name> and hr:refused; hr:shards
Owns    the waiting order, credits, and taking tasks back from silent workers

Any number of replicas share the work: each decision is one script, and nothing is kept in the process.
"""
