"""The tasks of a day, one a line: `python users.py DAY [COUNT]`, for `headrace submit`."""

import json
import sys
from collections.abc import Iterator

ROUTE = "/invocations"
USERS = 100_000


def lines(day: str, count: int) -> Iterator[str]:
    """The task_id makes a line that is sent again the same task, so a day's run can be repeated from the start at any time."""
    for number in range(count):
        user = f"u-{number:06}"
        body = {"model": "recommender", "user": user, "n": 10}
        yield json.dumps({"route": ROUTE, "lane": "batch", "task_id": f"recommend-{day}-{user}", "body": body})


if __name__ == "__main__":
    for line in lines(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else USERS):
        sys.stdout.write(line + "\n")
