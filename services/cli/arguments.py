"""What each command takes, and its help."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

MAX_TOKENS = 256
"""Of an answer, unless told otherwise: a small model does not always find an end."""
TEMPERATURE = 0.2
"""Of `ask`: at the usual 1.0 a small model strays."""
IN_FLIGHT = 64
"""Enough to keep a worker's batch full, few enough to leave room for others."""
MOST_IN_FLIGHT = 1000
"""Each has a connection, and a process may usually have 1024 files open."""
LANES = ("interactive", "normal", "batch")

SUBMIT = """Waits for the results.
A task is JSON: an envelope or the shorthand of POST /v1/tasks, a body of the OpenAI API, or a line of an OpenAI batch,
whose custom_id comes back. Each result has its `line`; a line that cannot be sent is a result with an error.
With a file and -o, the same command goes on after Ctrl-C or a crash: what is finished is not sent again, and what was
under way is found again. FILE.state beside the output says what it belongs to."""

SUBMIT_EXAMPLES = (
    "headrace submit tasks.jsonl -o results.jsonl",
    "headrace submit tasks.jsonl -o results.jsonl --in-order --in-flight 128 --lane normal",
    "zcat tasks.jsonl.gz | headrace submit - -o results.jsonl",
    'headrace submit --text "Name three rivers."',
    """headrace submit --body '{"input_text": "Name three rivers.", "priority": "low"}'""",
)

EXIT_CODES = """
exit codes:
  0    done
  1    a fault; the message says what to do
  2    wrong arguments or settings
  3    a task failed or was refused
  130  interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="Durable, fair and resumable tasks for vLLM.",
        epilog=f"`headrace COMMAND --help` shows examples.\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about_tasks = (_add_ask, _add_submit, _add_watch, _add_tasks, _add_cancel, _add_dead)
    for add in (_add_up, *about_tasks, _add_batches, _add_files, _add_keys, _add_config):
        add(commands)
    return parser


def _command(commands: "Commands", name: str, summary: str, about: str, *examples: str) -> argparse.ArgumentParser:
    shown = "\n".join(f"  {example}" for example in examples)
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {about}",
        epilog=f"examples:\n{shown}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_up(commands: "Commands") -> None:
    about = "Uses the Redis that REDIS_URL names, or starts one of its own.\nCtrl-C stops everything, in order."
    examples = (
        "headrace up",
        'headrace up --engine echo --once "Hello"',
        "headrace up --replicas ingress=2,inference=2 --port 0 --ws-port 0 --json",
    )
    up = _command(commands, "up", "start everything on this machine", about, *examples)
    up.add_argument(
        "--engine",
        choices=("vllm", "openai", "python", "echo"),
        help="instead of the engines that the configuration names",
    )
    up.add_argument("--replicas", default="", metavar="LIST", help="such as ingress=2,scheduler=2,inference=2,notifier=2; inference counts for every shard of every pool (1 each)")  # fmt: skip
    up.add_argument("--once", metavar="QUESTION", help="ask, print the answer, stop")
    up.add_argument(
        "--json", action="store_true", help="when all is ready, one line of JSON on stdout: http, ws, redis, replicas"
    )
    up.add_argument("--config", metavar="FILE", help="headrace.toml to use (HEADRACE_CONFIG, else ./headrace.toml)")
    up.add_argument(
        "--port", type=_port, metavar="N", help="of the HTTP door (HEADRACE_INGRESS_PORT, else 8080); 0: a free one"
    )
    up.add_argument(
        "--ws-port", type=_port, metavar="N", help="of the WebSocket (HEADRACE_NOTIFIER_PORT, else 8081); 0: a free one"
    )
    up.add_argument("--data-dir", type=Path, metavar="FOLDER", help="keeps Redis' data and the logs (default: headrace in XDG_STATE_HOME, else ~/.local/state)")  # fmt: skip


def _add_ask(commands: "Commands") -> None:
    about = "The answer is printed as it comes. Ctrl-C cancels it."
    ask = _command(
        commands, "ask", "ask a question", about, 'headrace ask "Why is the sky blue?"', "headrace ask --json Hello"
    )
    ask.add_argument("question")
    ask.add_argument("--model", help="default: the first that is served")
    ask.add_argument("--max-tokens", type=_count, default=MAX_TOKENS, metavar="N", help=f"of the answer ({MAX_TOKENS})")
    ask.add_argument(
        "--temperature",
        type=float,
        default=TEMPERATURE,
        metavar="T",
        help=f"0: always the likeliest word ({TEMPERATURE})",
    )
    _add_door(ask, json="the whole answer as one line of JSON")


def _add_submit(commands: "Commands") -> None:
    submit = _command(commands, "submit", "submit a file of tasks, or one task", SUBMIT, *SUBMIT_EXAMPLES)
    what = submit.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", metavar="FILE", help="one task a line; - is standard input")
    what.add_argument("--file", dest="named", help=argparse.SUPPRESS)
    what.add_argument("--text", help="of one task")
    what.add_argument("--body", metavar="JSON", help="one task")
    submit.add_argument("-o", "--output", type=Path, metavar="FILE", help="results, one a line (default: standard output)")  # fmt: skip
    submit.add_argument("--in-order", action="store_true", help="results in the order of the lines (default: as they come)")  # fmt: skip
    submit.add_argument("--restart", action="store_true", help="forget an earlier run: replaces what is in the output")
    submit.add_argument("--in-flight", type=_in_flight, metavar="N", help=f"tasks of a file under way at once ({IN_FLIGHT})")  # fmt: skip
    submit.add_argument("--lane", choices=LANES, help="where a task names none (of a file: batch; of one task: normal)")
    submit.add_argument("--session", default="", help="that may watch the tasks, where a task names none")
    submit.add_argument("--no-wait", action="store_true", help="the ids, do not wait for results")
    _add_door(submit, json="one line of JSON, as GET /v1/tasks/ID answers; results of a file are JSON anyhow")


def _add_watch(commands: "Commands") -> None:
    about = "Prints text as it comes, from its start; survives lost connections.\nCtrl-C ends the watching, not the tasks: `headrace cancel` does that."
    watch = _command(
        commands, "watch", "follow tasks, or all of a session", about,
        "headrace watch smol.0.0.0.06dfm2k8q0v3z7h1c5x9w4t6ny", "headrace watch --session ann --json",
    )  # fmt: skip
    watch.add_argument("tasks", nargs="*", metavar="ID")
    watch.add_argument("--session", default="", help="all its tasks, also those to come, until interrupted")
    watch.add_argument("--ws-url", metavar="URL", help="of the WebSocket (default: as the HTTP door tells)")
    _add_door(watch, json="the messages of the protocol headrace.v1, one a line")


def _add_tasks(commands: "Commands") -> None:
    about = "With an ID shows that one."
    examples = ("headrace tasks", "headrace tasks --session ann --limit 100 --json", "headrace tasks ID")
    tasks = _command(commands, "tasks", "list the newest tasks", about, *examples)
    tasks.add_argument("id", nargs="?", metavar="ID")
    tasks.add_argument("--session", default="", help="only its tasks")
    tasks.add_argument("--limit", type=_count, default=20, metavar="N", help="at most 100 (20)")
    _add_door(tasks, json="one line of JSON per task")


def _add_cancel(commands: "Commands") -> None:
    about = "A waiting task ends at once, a running one as soon as its worker hears of it. To repeat it is harmless."
    examples = ("headrace cancel smol.0.0.0.06dfm2k8q0v3z7h1c5x9w4t6ny", "headrace cancel --json ID ID")
    cancel = _command(commands, "cancel", "cancel tasks", about, *examples)
    cancel.add_argument("ids", nargs="+", metavar="ID")
    _add_door(cancel, json="one line of JSON per task")


def _add_dead(commands: "Commands") -> None:
    about = "What was given up is kept with its payload, reason and history until it is requeued or dropped."
    examples = ("headrace dead list --code task_quarantined", "headrace dead requeue --model smollm2-135m-instruct")
    dead = _command(commands, "dead", "list, show, requeue or drop dead letters", about, *examples)
    actions = dead.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_dead_list(actions)
    show = _command(actions, "show", "show one", "With what was asked.", "headrace dead show smol.0:1795239861286-0")
    show.add_argument("id", metavar="ID")
    _add_door(show, json="one line of JSON")
    _add_dead_requeue(actions)
    _add_dead_drop(actions)


def _add_dead_list(actions: "Commands") -> None:
    examples = ("headrace dead list", "headrace dead list --pool smol --limit 1000 --json")
    listing = _command(actions, "list", "list the newest", "Tasks, and replies that could not be delivered.", *examples)
    _add_filters(listing)
    listing.add_argument("--limit", type=_count, default=20, metavar="N", help="how many (20)")
    _add_door(listing, json="one line of JSON per dead letter")


def _add_dead_requeue(actions: "Commands") -> None:
    about = "Each becomes a new task, which names the dead one in `requeued_from`; a reply is sent once more."
    examples = ("headrace dead requeue smol.0:1795239861286-0", "headrace dead requeue --code task_quarantined")
    requeue = _command(actions, "requeue", "have them run again", about, *examples)
    requeue.add_argument("ids", nargs="*", metavar="ID")
    _add_filters(requeue)
    requeue.add_argument("--all", action="store_true", help="whatever there is")
    _add_door(requeue, json="one line of JSON per ID; by filter, one line in all")


def _add_dead_drop(actions: "Commands") -> None:
    about = "They cannot be brought back."
    examples = ("headrace dead drop smol.0:1795239861286-0", "headrace dead drop --all --yes")
    drop = _command(actions, "drop", "drop them", about, *examples)
    drop.add_argument("ids", nargs="*", metavar="ID")
    _add_filters(drop)
    drop.add_argument("--all", action="store_true", help="whatever there is")
    drop.add_argument("--yes", action="store_true", help="do not ask before dropping by filter")
    _add_door(drop, json="one line of JSON per ID; by filter, one line in all")


def _add_files(commands: "Commands") -> None:
    about = "What batches read and write, and whatever else the Files API keeps."
    examples = ("headrace files put tasks.jsonl", "headrace files list", "headrace files get ID -o results.jsonl")
    files = _command(commands, "files", "put, list, get or remove files", about, *examples)
    actions = files.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = _command(actions, "list", "list the newest", "With what is left of their time.", "headrace files list")
    listing.add_argument("--purpose", default="", help="only those, such as batch_output")
    listing.add_argument("--limit", type=_count, default=20, metavar="N", help="at most 10,000 (20)")
    _add_door(listing, json="one line of JSON per file")
    put = _command(actions, "put", "upload files", "Prints their ids.", "headrace files put tasks.jsonl")
    put.add_argument("paths", nargs="+", type=Path, metavar="FILE")
    put.add_argument("--purpose", default="batch", help="what for (batch)")
    put.add_argument("--keep-s", type=_count, metavar="N", help="seconds, 3600 to 2592000 (as the server keeps files)")
    _add_door(put, json="one line of JSON per file")
    about = "A file that still grows is taken as far as it is."
    get = _command(actions, "get", "download a file", about, "headrace files get ID -o results.jsonl")
    get.add_argument("id", metavar="ID")
    get.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to (default: standard output)")
    _add_url(get)
    rm = _command(actions, "rm", "remove files", "They cannot be brought back.", "headrace files rm ID ID")
    rm.add_argument("ids", nargs="+", metavar="ID")
    _add_door(rm, json="one line of JSON per file")


def _add_batches(commands: "Commands") -> None:
    about = "A file of requests that run when there is room. Its results are files: headrace files get ID."
    examples = ("headrace batches create tasks.jsonl --watch", "headrace batches list", "headrace batches cancel ID")
    batches = _command(commands, "batches", "make, list, watch or cancel batches", about, *examples)
    actions = batches.add_subparsers(dest="action", required=True, metavar="ACTION")
    about = "Each line has custom_id, method, url and body. Prints the id of the batch."
    create = _command(actions, "create", "upload a file and have it run", about, "headrace batches create tasks.jsonl")
    create.add_argument("file", type=Path, metavar="FILE")
    create.add_argument("--endpoint", metavar="PATH", help="route of all lines (that of the first line)")
    create.add_argument("--window", default="24h", metavar="TIME", help="whole hours or days, such as 3d (24h)")
    create.add_argument(
        "--webhook", metavar="NAME", help="who is told of its end: an endpoint of headrace.toml, or a URL"
    )
    create.add_argument("--watch", action="store_true", help="wait for its end")
    _add_door(create, json="one line of JSON, as GET /v1/batches/ID answers")
    listing = _command(actions, "list", "list the newest", "With what has become of them.", "headrace batches list")
    listing.add_argument("--limit", type=_count, default=20, metavar="N", help="at most 100 (20)")
    _add_door(listing, json="one line of JSON per batch")
    about = "Ctrl-C ends the watching, not the batch."
    watch = _command(actions, "watch", "wait for the end of one", about, "headrace batches watch ID")
    watch.add_argument("id", metavar="ID")
    _add_door(watch, json="one line of JSON at the end")
    about = "What was done stays in its output."
    cancel = _command(actions, "cancel", "cancel batches", about, "headrace batches cancel ID ID")
    cancel.add_argument("ids", nargs="+", metavar="ID")
    _add_door(cancel, json="one line of JSON per batch")


def _add_keys(commands: "Commands") -> None:
    examples = ("headrace keys new --tenant acme", "headrace keys new --tenant acme --name acme-web")
    keys = _command(commands, "keys", "make API keys", "Nothing needs to run.", *examples)
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = "Prints the key, which is kept nowhere, and the lines for headrace.toml, which hold only its digest."
    new = _command(actions, "new", "make an API key", shown, *examples)
    new.add_argument("--tenant", required=True, metavar="NAME", help="who pays for what is asked with it")
    new.add_argument("--name", default="", metavar="KEY", help="of the key in headrace.toml and in logs (the tenant's)")


def _add_config(commands: "Commands") -> None:
    about = "Nothing is changed, and nothing needs to run."
    examples = ("headrace config check", "headrace config check deploy/base/headrace.toml")
    config = _command(commands, "config", "check a configuration file", about, *examples)
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = "Tells what the file says, or everything that is wrong with it; then the exit code is 1."
    check = _command(actions, "check", "check headrace.toml", shown, *examples)
    check.add_argument("file", nargs="?", metavar="FILE", help="(HEADRACE_CONFIG, else ./headrace.toml)")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pool", help="only of this pool")
    parser.add_argument("--code", help="only with this error code, such as task_quarantined")
    parser.add_argument("--model", help="only of this model")


def _add_door(parser: argparse.ArgumentParser, *, json: str) -> None:
    _add_url(parser)
    parser.add_argument("--json", action="store_true", help=json)


def _add_url(parser: argparse.ArgumentParser) -> None:
    url = os.environ.get("HEADRACE_URL") or "http://127.0.0.1:8080"  # noqa: TID251  no service: its one variable
    parser.add_argument("--url", default=url, help="of the HTTP door (HEADRACE_URL, else http://127.0.0.1:8080)")


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 (a free one) to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _in_flight(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MOST_IN_FLIGHT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_IN_FLIGHT}")
    return int(text)
