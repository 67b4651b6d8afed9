"""The scheduler: decides which waiting task goes to which worker, and when.

Reads   hr:requests (group `front`), {shard}:in (group `scheduler`), hr:batches, hr:reply:batch.<batch>
Writes  {shard}:backlog:*, {shard}:work:<worker>; refusals to hr:reply:<name> and hr:refused; hr:shards; hr:{b.<batch>}:*
Owns    the waiting order, credits, taking tasks back from silent workers, and the batches whose lease it holds

Any number of replicas share the work: each decision is one script, and nothing is kept in the process.
"""
