"""The one Redis client.

connection   many callers, one write: commands of an event-loop turn leave together, replies come back in order
script       Lua beside its caller, loaded once, run by its digest
batch        items of many callers become one script call
durability   calls that more than the memory of one server confirms
client       the connections of one process
check        whether a Redis can keep the durability asked for
memory       whether there is room for new tasks
streams      entries, groups and readers, also when memory is full
consume      the consumer loop and the ack contract
tail         every event of the bus partitions somebody here waits for
cursor       a place in a task's log
subscription one task's events without gap or repeat
"""
