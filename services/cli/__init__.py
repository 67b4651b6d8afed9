"""The command line: `headrace up` starts a whole deployment here; the other commands are clients of its public doors.

Talks to  ingress over HTTP, the notifier over WebSocket; `up` also to the processes it starts
Owns      nothing that a service needs; `up` owns its processes, and the data folder of the Redis it starts
"""
