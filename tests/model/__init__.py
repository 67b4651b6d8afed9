"""What the scripts must do, held against what they do; and what befalls those who call them.

lifecycle   one shard as plain Python, and what several scripts do alike
doors       submit, cancel, attend        scheduler   admit, dispatch, reap, due, repair
worker      beat, start, rebase, emit, finish, release, retire
observed    the same shard, read from Redis
driver      runs script and model side by side and compares all that they leave behind

recorder    a bus on which a sender dies, an answer is lost, a command comes twice or late
flows       what the services do in several round trips, and how fresh ones bring it to its end
"""
