"""The one Redis client.

connection   many callers, one write: commands of an event-loop turn leave together, replies come back in order
script       Lua beside its caller, loaded once, run by its digest
batch        items of many callers become one script call
client       the connections of one process
consume      the consumer loop and the ack contract
tail         every event of the bus partitions somebody here waits for
subscription one task's events without gap or repeat
"""
