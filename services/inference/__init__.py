"""Inference: runs tasks on an engine and publishes what it makes.

Reads   {shard}:work:<worker> (group `workers`)
Writes  {shard}:bus:<p>, {shard}:log:<task>, the task's hash and outbox, by the scripts start, emit and finish; {shard}:workers
Owns    the engine, and the chunks of a running task until they are acknowledged

One process is one worker of one shard.
"""
