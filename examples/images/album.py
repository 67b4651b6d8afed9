"""Makes every picture of a folder beautiful, as one batch: `python album.py FOLDER OUT [URL]`.

The pictures go up as files, the batch names them, and what is made of them are files again: no picture is in a task.
"""

import json
import sys
import time
from pathlib import Path

from openai import OpenAI

ROUTE = "/v1/images/edits"
ENDS = ("completed", "failed", "cancelled", "expired")
LOOK_S = 1.0


def main(folder: Path, out: Path, url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    lines = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        file = client.files.create(file=path, purpose="vision")
        body = {"model": "beautify", "image": file.id, "prompt": "beautify", "answer": "file"}
        lines.append(json.dumps({"custom_id": path.name, "method": "POST", "url": ROUTE, "body": body}))
    tasks = client.files.create(file=("album.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=tasks.id, endpoint=ROUTE, completion_window="24h")
    while batch.status not in ENDS:
        time.sleep(LOOK_S)
        batch = client.batches.retrieve(batch.id)
    out.mkdir(exist_ok=True)
    for end in (batch.output_file_id, batch.error_file_id):
        for line in client.files.content(end).text.splitlines() if end else []:
            item = json.loads(line)
            name, made = item["custom_id"], item["response"]["body"] if item["response"] else item
            if "error" in made:
                sys.stdout.write(f"{name}: {made['error']['message']}\n")
            else:
                client.files.content(made["id"]).write_to_file(out / f"{name}.png")
                sys.stdout.write(f"{name}: {out / name}.png\n")
    if batch.status != "completed":
        sys.exit(f"the batch is {batch.status}: {batch.errors}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8080")
