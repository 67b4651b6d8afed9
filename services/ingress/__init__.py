"""Ingress: HTTP in. Requests become tasks; answers are read from the bus and given back as the OpenAI API gives them.

Reads   {shard}:bus:<p> (a group of its own), {shard}:log:<task>, the task's hash
Writes  {shard}:in and the task's hash, by the scripts reserve and submit
Owns    nothing: it may be stopped or doubled at any time, and any replica answers for any task
"""
