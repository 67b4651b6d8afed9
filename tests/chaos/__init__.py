"""The chaos run: a real deployment under load and seeded faults, then an audit of what the design promises (docs/chaos.md).

__main__  arguments, exit code             tickets      what clients ask for, drawn from a seed
run       the phases of a run              clients      who asks: HTTP, retried with a key
cluster   processes, each kept running     stream_door  who asks by XADD
link      one process's way to Redis       pages        who watches by WebSocket
faults    what is broken, and when         history      what all of them did and saw
witness   what the services published      audit        the promises, held against all that
recovery  how long it took                 leftovers    what is left in Redis
report    text and JSON
"""
