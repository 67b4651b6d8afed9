"""`headrace up`: a whole deployment on this machine, each service a process of its own.

command       from the arguments to a running deployment and back to nothing
plan          what to start, with which ports and environment
home          the folder that keeps data and logs; one deployment at a time
redis_server  which Redis: the one given, or a server of our own
redis_check   whether a Redis can be relied upon
model         what vLLM needs before it starts: memory, packages, the converted model
process       one child process: start, wait until it is ready, stop
replica       a process kept running
deployment    all replicas: started together, stopped in order
screen        progress on the terminal
"""
